"""Reading a small CUB-200-2011 and a small NABirds."""

from pathlib import Path

import pytest

from pipeline.data.sources import open_source
from pipeline.tasks.catalogue import Task

BIRDS = Task(name="fgvc-birds", short_name="birds", folder="birds", group="fgvc", num_classes=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of three CUB classes, alternating between train and test."""
    folder = tmp_path / "birds"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    for name in names:
        (folder / "images" / name).mkdir(parents=True)
    paths = [f"{names[i % 3]}/{i}.jpg" for i in range(12)]
    for path in paths:
        (folder / "images" / path).write_bytes(b"")
    (folder / "images.txt").write_text("".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    (folder / "image_class_labels.txt").write_text("".join(f"{i + 1} {i % 3 + 1}\n" for i in range(12)))
    (folder / "train_test_split.txt").write_text("".join(f"{i + 1} {int(i < 9)}\n" for i in range(12)))
    (folder / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    return folder


def faults(folder: Path) -> list[str]:
    with pytest.raises(ValueError, match="cannot be used") as error:
        open_source(str(folder), BIRDS)
    found: list[str] = error.value.faults  # type: ignore[attr-defined]
    return found


def test_cub_is_read_by_its_official_split_in_the_order_of_its_list(folder: Path) -> None:
    source = open_source(str(folder), BIRDS)
    assert source.layout == "id-lists"
    assert source.class_names == ["Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross"]
    found = [(sample.path, sample.label) for sample in source.splits["test"]]
    places = ["001.Black_footed_Albatross/9.jpg", "002.Laysan_Albatross/10.jpg", "003.Sooty_Albatross/11.jpg"]
    assert found == [(str(folder / "images" / path), label) for label, path in enumerate(places)]
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 6, "val": 3, "test": 3}
    assert source.val_origin == "a stratified tenth of train, seed 0"


def test_nabirds_numbers_the_classes_that_have_an_image_in_the_order_of_their_ids(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    ids = ["0000139e-21dc-4d0c-bfe1-4cae3c85c829", "00047a3e-f6d5-4a1d-8d4d-4ff6b2c0b0e4", "0f", "1f", "2f", "3f"]
    classes = [817, 9, 1010, 817, 9, 1010]
    lines = []
    for image, class_id in zip(ids, classes, strict=True):
        path = f"{class_id:04d}/{image.replace('-', '')}.jpg"
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / path).write_bytes(b"")
        lines.append(f"{image} {path}\n")
    (folder / "images.txt").write_text("".join(lines))
    (folder / "image_class_labels.txt").write_text(
        "".join(f"{i} {c}\n" for i, c in sorted(zip(ids, classes, strict=True)))
    )
    # Two train images of each class, so that one becomes val.
    for image, class_id in (("a", 9), ("b", 817), ("c", 1010)):
        (folder / f"images/{class_id:04d}/{image}.jpg").write_bytes(b"")
        with open(folder / "images.txt", "a") as file:
            file.write(f"{image} {class_id:04d}/{image}.jpg\n")
        with open(folder / "image_class_labels.txt", "a") as file:
            file.write(f"{image} {class_id}\n")
    split = {**dict.fromkeys(ids[:3], 0), **dict.fromkeys([*ids[3:], "a", "b", "c"], 1)}
    (folder / "train_test_split.txt").write_text("".join(f"{i} {is_train}\n" for i, is_train in split.items()))
    (folder / "classes.txt").write_text(
        "0 Birds\n9 Ducks, Geese, and Swans\n817 Common Eider (Adult male)\n1010 Dark-eyed Junco\n"
    )
    source = open_source(str(folder), BIRDS)
    assert source.class_names == ["Ducks, Geese, and Swans", "Common Eider (Adult male)", "Dark-eyed Junco"]
    assert [sample.label for sample in source.splits["test"]] == [1, 0, 2]
    assert source.splits["test"][0].path.endswith("0817/0000139e21dc4d0cbfe14cae3c85c829.jpg")


def test_lines_that_are_none_and_missing_lists_are_told_together(folder: Path) -> None:
    (folder / "train_test_split.txt").unlink()
    (folder / "images.txt").write_text("1 a.jpg\n2\n1 b.jpg\n\n")
    (folder / "image_class_labels.txt").write_text("1 x\n")
    (folder / "classes.txt").write_bytes(b"1 \xff")
    assert faults(folder) == [
        "images.txt:2: '2': expected <image id> <path>",
        "images.txt:3: 1 has a line already",
        "image_class_labels.txt:1: '1 x': expected <image id> <class id>",
        f"train_test_split.txt: no such file in {folder}",
        "classes.txt:1: not a UTF-8 text: byte 2 of the file is 0xff; if it is Windows-1252 (cp1252), the line is "
        "'1 ÿ': save the file as UTF-8, or: iconv -f CP1252 -t UTF-8 OLD > NEW",
    ]


def test_lists_that_do_not_agree_are_told_together(folder: Path) -> None:
    for name, old, new in [
        ("image_class_labels.txt", "2 2\n", "99 7\n"),
        ("train_test_split.txt", "3 1\n", ""),
    ]:
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(old, new, 1))
    assert faults(folder) == [
        "image_class_labels.txt: has no line for image 2",
        "image_class_labels.txt: image 99 is not in images.txt",
        "train_test_split.txt: has no line for image 3",
        "classes.txt: has no class 7, which image_class_labels.txt names",
    ]


def test_a_path_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder.parent / "secret.jpg").write_bytes(b"")
    text = (folder / "images.txt").read_text()
    (folder / "images.txt").write_text(text.replace("001.Black_footed_Albatross/0.jpg", "../../secret.jpg"))
    (fault,) = faults(folder)
    assert fault.startswith("images.txt: image 1: 'images/../../secret.jpg' leads out of")


def test_names_of_classes_that_look_alike_are_a_fault(folder: Path) -> None:
    text = (folder / "classes.txt").read_text()
    (folder / "classes.txt").write_text(text.replace("Sooty_Albatross", "laysan_albatross"))
    (fault,) = faults(folder)
    assert "class 2: 'laysan_albatross' (b'laysan_albatross') and 'Laysan_Albatross' (b'Laysan_Albatross'" in fault
    (folder / "classes.txt").write_text(text.replace("Sooty_Albatross", "Laysan_Albatross"))
    (fault,) = faults(folder)
    assert "are the same class" in fault


def test_lists_from_windows_are_read(folder: Path) -> None:
    before = open_source(str(folder), BIRDS)
    for number, path in enumerate(folder.glob("*.txt")):
        text = path.read_text().replace("/", "\\").replace("\n", "\r\n")
        path.write_bytes(text.encode(("utf-8-sig", "utf-16")[number % 2]))
    assert open_source(str(folder), BIRDS).splits == before.splits
