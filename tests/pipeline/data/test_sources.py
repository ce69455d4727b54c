"""Raw data in each layout, and everything that can be wrong with it."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.errors import MAX_SHOWN
from pipeline.data.raw.layouts import LAYOUTS
from pipeline.data.shards.manifest import Manifest
from pipeline.data.sources import DataError, open_source, subset_reasons
from pipeline.tasks.catalogue import TASKS, Task
from tests.pipeline.data.conftest import make_photos, own_task, refused


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_the_lists_of_the_vtab_zip_are_read_as_they_are(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    source = open_source(str(raw), task)
    assert (source.layout, source.val_origin, source.subset_reasons) == ("vtab-lists", "", [])
    assert source.class_names == ["0", "1", "2"]
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 12, "val": 6, "test": 9}
    sample = source.splits["test"][4]
    assert (sample.label, sample.path) == (1, str(raw / "tiny/images/test4.png"))
    keys = [sample.key for samples in source.splits.values() for sample in samples]
    assert len(set(keys)) == len(keys)
    assert "." not in "".join(keys)


def test_the_task_folder_itself_serves_as_the_root(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    assert open_source(str(raw / "tiny"), task) == open_source(str(raw), task)
    other = dataclasses.replace(task, name="vtab-other", folder="other", short_name="other")
    assert f"{raw}/tiny/other: no such folder" in refused(raw / "tiny", other)


def test_class_names_decide_how_many_classes_there_are(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    (raw / "tiny/classnames.txt").write_text("cat\ndog\ngreat tit\nnewt\n")
    source = open_source(str(raw), task)
    assert source.class_names == ["cat", "dog", "great tit", "newt"]
    assert source.subset_reasons == ["4 of 3 classes"]


def test_a_path_with_spaces_keeps_them(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    (raw / "tiny/images/a b.png").write_bytes((raw / "tiny/images/test0.png").read_bytes())
    append(raw / "tiny/test.txt", "images/a b.png 2\n")
    assert open_source(str(raw), task).splits["test"][-1].path.endswith("/a b.png")


def test_every_fault_is_reported_with_file_and_line(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    outside = raw / "secret.png"
    outside.write_bytes(b"")
    os.symlink(outside, raw / "tiny/images/link.png")
    os.symlink(raw, raw / "tiny/images/up")
    (raw / "tiny/images/folder.png").mkdir()
    append(
        raw / "tiny/train800.txt",
        "images/none.png 0\nimages/train0.png 3\nimages/train1.png\n\nimages/train2.png 1.5\n",
    )
    append(raw / "tiny/val200.txt", "images/val0.png -1\nimages/train3.png 0\n")
    append(
        raw / "tiny/test.txt",
        f"../secret.png 0\n{outside} 0\nimages/link.png 0\nimages/up/secret.png 1\nimages/folder.png 0\nimages/.. 0\n",
    )
    message = refused(raw, task)
    for part in (
        "train800.txt:13: no file 'images/none.png'",
        "train800.txt:14: label 3 is out of range; 3 classes: 0 to 2",
        "train800.txt:14: 'images/train0.png' stands in line 1 already",
        "train800.txt:15: 'images/train1.png': expected <relative path> <label>",
        "train800.txt:17: 'images/train2.png 1.5': expected",
        "val200.txt:7: label -1 is out of range",
        "val200.txt: 'images/train3.png' stands in train800.txt too",
        "test.txt:10: '../secret.png' leads out of",
        f"test.txt:11: '{outside}' is an absolute path; give paths relative to {raw}/tiny",
        "test.txt:12: 'images/link.png' leads out of",
        "test.txt:13: 'images/up/secret.png' leads out of",
        "test.txt:14: 'images/folder.png' is no regular file",
        "test.txt:15: 'images/..' is no path",
    ):
        assert part in message


def test_a_link_that_stays_inside_is_followed(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    (raw / "tiny/store").mkdir()
    os.rename(raw / "tiny/images/test0.png", raw / "tiny/store/0.png")
    os.symlink("../store/0.png", raw / "tiny/images/test0.png")
    assert open_source(str(raw), task).splits["test"][0].path == str(raw / "tiny/store/0.png")


def test_a_folder_whose_name_begins_like_the_root_is_outside(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    (raw / "tiny-private").mkdir()
    (raw / "tiny-private/x.png").write_bytes(b"")
    append(raw / "tiny/test.txt", "../tiny-private/x.png 0\n")
    assert "test.txt:10: '../tiny-private/x.png' leads out of" in refused(raw, task)


def test_many_faults_are_counted_not_all_shown(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    append(raw / "tiny/test.txt", "".join(f"images/none{i}.png 0\n" for i in range(50)))
    message = refused(raw, task)
    assert message.count("no file") == MAX_SHOWN
    assert message.endswith("and 30 more")


def test_missing_lists_are_named(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    (raw / "tiny/train800.txt").unlink()
    (raw / "tiny/test.txt").write_text("\n")
    message = refused(raw, task)
    assert "train800.txt: no such file in" in message
    assert "test.txt: lists no image" in message


def test_a_trainval_list_of_other_images_is_refused(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    path = raw / "tiny/train800val200.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]) + "images/test0.png 0\n")
    assert "train800val200.txt: 1 of its lines stand in neither train800.txt nor val200.txt, 1 of" in refused(raw, task)


def test_an_empty_class_name_is_a_fault_because_it_shifts_the_labels(
    make_lists: Callable[..., Path], task: Task
) -> None:
    raw = make_lists()
    (raw / "tiny/classnames.txt").write_text("cat\n\ndog\n")
    assert "classnames.txt:2: empty, expected a class name" in refused(raw, task)


def test_a_list_that_is_no_text_is_a_fault(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    (raw / "tiny/val200.txt").write_bytes(b"\xff\xfe\x00")
    assert "val200.txt: not a text of the utf-16 that its first bytes announce" in refused(raw, task)
    (raw / "tiny/val200.txt").write_bytes(b"images/val0.png 0\nimages/\0.png 0\n")
    assert "val200.txt:2: not a UTF-8 text: byte 25 of the file is 0x00, which no text has" in refused(raw, task)


def test_missing_data_names_every_place_looked_at(tmp_path: Path, task: Task) -> None:
    (tmp_path / "vtab-tiny").mkdir()
    message = refused(tmp_path, task)
    assert f"{tmp_path}/tiny: no such folder" in message
    assert f"{tmp_path}/vtab-tiny: has none of train800.txt" in message
    assert all((layout.sign in message) == layout.is_for(task) for layout in LAYOUTS)


def test_a_folder_may_have_the_name_that_others_give_it(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    other = dataclasses.replace(task, name="vtab-other", folder="other", short_name="other", other_folders=("tiny",))
    assert open_source(str(raw), other).splits == open_source(str(raw), task).splits
    assert open_source(str(raw / "tiny"), other).uri == str(raw / "tiny")


def test_a_label_map_holds_in_every_layout(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists()
    coarse = dataclasses.replace(task, num_classes=2, label_maps={"tiny": (1, 0, 1)})
    source = open_source(str(raw), coarse)
    assert source.class_names == ["0", "1"]
    assert [sample.label for sample in source.splits["test"]] == [1, 0, 1] * 3


def test_a_list_goes_before_folders_that_merely_lie_there(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_folders(make_lists())
    assert open_source(str(raw), task).layout == "vtab-lists"


def test_a_source_without_val_gives_a_tenth_of_each_class_by_seed(make_lists: Callable[..., Path], task: Task) -> None:
    raw = make_lists(train=60)
    (raw / "tiny/val200.txt").unlink()
    source = open_source(str(raw), task, seed=1)
    assert Counter(sample.label for sample in source.splits["val"]) == {0: 2, 1: 2, 2: 2}
    assert source.val_origin == "a stratified tenth of train, seed 1"
    together = sorted(s.path for split in ("train", "val") for s in source.splits[split])
    assert together == sorted(str(raw / f"tiny/images/train{i}.png") for i in range(60))
    assert open_source(str(raw), task, seed=1) == source
    assert open_source(str(raw), task, seed=2).splits["val"] != source.splits["val"]


def make_folders(root: Path) -> Path:
    for split, count in {"train": 10, "val": 2, "test": 3}.items():
        for name in ("newt", "cat", "great tit"):
            folder = root / "tiny" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.JPG").write_bytes(b"")
    return root


def test_a_folder_per_class_is_read_in_the_order_of_names(tmp_path: Path, task: Task) -> None:
    source = open_source(str(make_folders(tmp_path)), task)
    assert (source.layout, source.class_names) == ("class-folders", ["cat", "great tit", "newt"])
    assert Counter(sample.label for sample in source.splits["train"]) == {0: 10, 1: 10, 2: 10}
    assert source.splits["test"][3].path == str(tmp_path / "tiny/test/great tit/0.JPG")
    assert source.splits["test"][3].label == 1


def test_what_is_wrong_with_class_folders_is_reported_together(tmp_path: Path, task: Task) -> None:
    root = make_folders(tmp_path / "data")
    (root / "tiny/val/wolf").mkdir()
    (root / "tiny/train/cat/notes.txt").write_text("x")
    (root / "tiny/train/cat/.DS_Store").write_text("x")
    (tmp_path / "secret.png").write_bytes(b"")
    os.symlink(tmp_path / "secret.png", root / "tiny/train/newt/link.png")
    (tmp_path / "more").mkdir()
    os.symlink(tmp_path / "more", root / "tiny/train/great tit/more")
    for path in (root / "tiny/test").rglob("*.JPG"):
        path.unlink()
    with pytest.raises(DataError) as error:
        open_source(str(root), task)
    parts = [
        "notes.txt: expected only images",
        "train/great tit/more: a link to a folder, whose images are not read",
        "link.png' leads out of",
        "val/wolf: train has no class",
        "test/: holds no",
    ]
    assert len(error.value.faults) == 5
    for fault, part in zip(error.value.faults, parts, strict=True):
        assert part in fault


def test_shards_are_a_source_too(make_shards: Callable[..., dict[str, Manifest]], tmp_path: Path, task: Task) -> None:
    manifests = make_shards()
    source = open_source(str(tmp_path / "shards"), dataclasses.replace(task, test_size=100))
    assert (source.layout, source.manifests) == ("shards", manifests)
    assert source.subset_reasons == ["test has 9 of 100 images"]


def test_shards_that_are_not_complete_are_no_source(
    make_shards: Callable[..., dict[str, Manifest]], tmp_path: Path, task: Task
) -> None:
    manifests = make_shards()
    Path(manifests["val"].uri).unlink()
    Path(manifests["test"].uri).write_text("{}")
    message = refused(tmp_path / "shards", task)
    assert "val: no manifest" in message
    assert "test/manifest.json: not a manifest" in message


def test_shards_of_another_task_are_refused(
    make_shards: Callable[..., dict[str, Manifest]], tmp_path: Path, task: Task
) -> None:
    make_shards()
    os.rename(tmp_path / "shards/vtab-tiny", tmp_path / "shards/vtab-other")
    other = dataclasses.replace(task, name="vtab-other", folder="other")
    assert "belongs to vtab-tiny train, expected vtab-other train" in refused(tmp_path / "shards", other)


def test_shards_whose_splits_name_different_classes_are_refused(
    make_shards: Callable[..., dict[str, Manifest]], tmp_path: Path, task: Task
) -> None:
    """Otherwise a label of test would mean another class than in train."""
    test = make_shards()["test"]
    Path(test.uri).write_bytes(dataclasses.replace(test, class_names=("2", "1", "0")).to_bytes())
    assert "the splits' manifests name different classes" in refused(tmp_path / "shards", task)


def test_what_differs_from_the_benchmark_is_said() -> None:
    dtd = TASKS["vtab-dtd"]
    assert subset_reasons(dtd, 47, {"train": 800, "val": 200, "test": 1880}) == []
    reasons = ["10 of 47 classes", "train has 320 of 800 images", "test has 300 of 1880 images"]
    assert subset_reasons(dtd, 10, {"train": 320, "val": 200, "test": 300}) == reasons
    cub = TASKS["fgvc-cub200"]  # its val is our tenth of train
    assert subset_reasons(cub, 200, {"train": 5394, "val": 600, "test": 5794}) == []
    assert subset_reasons(cub, 200, {"train": 5394, "val": 500, "test": 5794}) == ["trainval has 5894 of 5994 images"]


def test_the_real_tasks_say_how_they_differ_from_the_benchmark(shared_dir: Path) -> None:
    real = str(shared_dir / "data" / "vtab-1k")
    assert open_source(real, TASKS["vtab-cifar100"]).subset_reasons == ["test has 1000 of 10000 images"]
    dtd = open_source(real, TASKS["vtab-dtd"])
    assert dtd.subset_reasons[0] == "10 of 47 classes"
    assert dtd.class_names[:2] == ["banded", "blotchy"]
    pets = open_source(real, TASKS["vtab-oxford_iiit_pet"])
    assert {split: len(samples) for split, samples in pets.splits.items()} == {"train": 148, "val": 37, "test": 185}


def test_lists_whose_classes_nobody_names_are_a_fault_of_its_own(make_lists: Callable[..., Path]) -> None:
    place = str(make_lists() / "tiny")
    with pytest.raises(DataError) as error:
        open_source("", own_task(data=place))
    (fault,) = error.value.faults
    assert fault.startswith(f"classnames.txt: no such file in {place}, and the task names neither classes nor")
    assert open_source("", own_task(data=place, num_classes=3)).class_names == ["0", "1", "2"]
    named = own_task(data=place, num_classes=3, class_names=("a", "b", "c"))
    assert open_source("", named).class_names == ["a", "b", "c"]


def test_class_names_that_are_not_the_datas_are_refused_in_every_layout(
    tmp_path: Path, make_shards: Callable[..., dict[str, Manifest]]
) -> None:
    make_shards()
    for place, names, found in (
        (make_folders(tmp_path / "folders") / "tiny", ("newt", "cat", "great tit"), "cat, great tit, newt"),
        (make_photos(tmp_path / "photos", dog=20, cat=20), ("dog", "cat"), "cat, dog"),
        (tmp_path / "shards/vtab-tiny", ("a", "b", "c"), "0, 1, 2"),
    ):
        own = own_task(name="vtab-tiny", data=str(place), class_names=names, num_classes=len(names))
        message = refused(tmp_path, own)
        assert f"the classes are {found}, in the order" in message
        assert f"class_names (own.toml:1) says {', '.join(names)}" in message


def test_classes_that_the_task_leaves_to_the_data_are_not_compared() -> None:
    sizes = {"train": 3, "val": 1, "test": 2}
    assert subset_reasons(own_task(), 7, sizes) == []
    assert subset_reasons(own_task(num_classes=5, test_size=9), 7, sizes) == [
        "7 of 5 classes",
        "test has 2 of 9 images",
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lists_and_class_names_from_windows_are_read(
    encoding: str, make_lists: Callable[..., Path], task: Task
) -> None:
    raw = make_lists()
    before = open_source(str(raw), task)
    names = "caf\N{LATIN SMALL LETTER E WITH ACUTE}\r\ndog\r\nnewt\r\n"
    (raw / "tiny/classnames.txt").write_bytes(names.encode(encoding))
    for path in (raw / "tiny").glob("*0.txt"):
        path.write_bytes(path.read_text().replace("/", "\\").replace("\n", "\r\n").encode(encoding))
    source = open_source(str(raw), task)
    assert source.class_names == names.split()
    assert source.splits == before.splits


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ("cat\ndog\ncat\n", "classnames.txt:3: 'cat' (b'cat') and 'cat' (b'cat', classnames.txt:1) are the same class"),
        ("cat\ndog\nDog\n", "classnames.txt:3: 'Dog' (b'Dog') and 'dog' (b'dog', classnames.txt:2) differ by case"),
        ("1\n2\n01\n", "classnames.txt:3: '01' (b'01') and '1' (b'1', classnames.txt:1) differ by leading zeros"),
        ("cat\ndog\nn\xe9wt\n", "classnames.txt:3: not a UTF-8 text: byte 9 of the file is 0xe9"),
    ],
)
def test_class_names_that_are_no_list_of_names_are_a_fault(
    names: str, fault: str, make_lists: Callable[..., Path], task: Task
) -> None:
    raw = make_lists()
    (raw / "tiny/classnames.txt").write_bytes(names.encode("cp1252"))
    assert fault in refused(raw, task)


def test_a_character_that_some_programs_end_a_line_at_is_a_part_of_a_name(
    make_lists: Callable[..., Path], task: Task
) -> None:
    """If it ended one, all labels after it would be shifted."""
    raw = make_lists()
    (raw / "tiny/classnames.txt").write_text("cat\u2028big\ndog\x0b\nnewt", encoding="utf-8")
    assert open_source(str(raw), task).class_names == ["cat\u2028big", "dog", "newt"]
