"""Reading a small Stanford Dogs."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.sources import DataError, open_source
from pipeline.tasks.catalogue import Task

DOGS = Task(name="fgvc-dogs", short_name="dogs", folder="dogs", group="fgvc", num_classes=2)
BREEDS = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"]


def write_list(path: Path, files: list[str], labels: list[int]) -> None:
    """Writes a list in the official format: one cell of texts per row, and labels as floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.array([[file] for file in files], dtype=object)
    savemat(path, {"file_list": cells, "annotation_list": cells, "labels": np.array([labels], float).T})


def make(folder: Path, lists: str = "") -> Path:
    for breed in BREEDS:
        (folder / "Images" / breed).mkdir(parents=True)
        for i in range(5):
            (folder / "Images" / breed / f"{i}.jpg").write_bytes(b"")
    train = [f"{BREEDS[i % 2]}/{i // 2}.jpg" for i in range(6)]
    write_list(folder / lists / "train_list.mat", train, [1, 2, 1, 2, 1, 2])
    write_list(folder / lists / "test_list.mat", [f"{BREEDS[1]}/4.jpg", f"{BREEDS[0]}/3.jpg"], [2, 1])
    return folder


@pytest.mark.parametrize("lists", ["", "lists"])
def test_its_lists_are_read_beside_the_images_or_in_lists(lists: str, tmp_path: Path) -> None:
    source = open_source(str(make(tmp_path / "dogs", lists)), DOGS)
    assert (source.layout, source.class_names) == ("dogs", ["Chihuahua", "Japanese_spaniel"])
    found = [(sample.path, sample.label) for sample in source.splits["test"]]
    images = tmp_path / "dogs/Images"
    assert found == [(str(images / BREEDS[1] / "4.jpg"), 1), (str(images / BREEDS[0] / "3.jpg"), 0)]
    assert [len(source.splits[split]) for split in ("train", "val")] == [4, 2]


def test_every_fault_of_its_lists_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "dogs")
    (tmp_path / "secret.jpg").write_bytes(b"")
    files = [f"{BREEDS[0]}/0.jpg", f"{BREEDS[1]}/9.jpg", f"{BREEDS[1]}/0.jpg", "../../secret.jpg", f"{BREEDS[0]}/3.jpg"]
    write_list(folder / "train_list.mat", files, [1, 2, 1, 4, 0])
    with pytest.raises(DataError) as error:
        open_source(str(folder), DOGS)
    told = "\n".join(error.value.faults)
    for part in (
        "label 1 is of 'n02085620-Chihuahua' and of 'n02085782-Japanese_spaniel' ('n02085782-Japanese_spaniel/0.jpg')",
        "label 3 has no image in train_list.mat, and so no name",
        "train_list.mat: image 2: no file 'Images/n02085782-Japanese_spaniel/9.jpg'",
        "train_list.mat: image 4: 'Images/../../secret.jpg' leads out of",
        "train_list.mat: image 5: label -1 is out of range",
        "test_list.mat: image 2: 'Images/n02085620-Chihuahua/3.jpg' stands in train_list.mat: image 5 already",
    ):
        assert part in told


def test_missing_lists_and_lists_of_two_lengths_are_told_together(tmp_path: Path) -> None:
    folder = make(tmp_path / "dogs")
    (folder / "test_list.mat").unlink()
    write_list(folder / "train_list.mat", [f"{BREEDS[0]}/0.jpg"], [1, 2])
    with pytest.raises(DataError) as error:
        open_source(str(folder), DOGS)
    assert error.value.faults == [
        "train_list.mat: has 1 files and 2 labels",
        f"test_list.mat: no such file in {folder}",
    ]


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    """Otherwise the number of classes would depend on test."""
    folder = make(tmp_path / "dogs")
    write_list(folder / "train_list.mat", [f"{BREEDS[0]}/{i}.jpg" for i in range(3)], [1, 1, 1])
    with pytest.raises(DataError) as error:
        open_source(str(folder), DOGS)
    assert error.value.faults == ["label 2 has no image in train_list.mat, and so no name"]


def test_a_list_that_was_made_on_windows_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "dogs")
    before = open_source(str(folder), DOGS)
    train = [f"{BREEDS[i % 2]}\\{i // 2}.jpg" for i in range(6)]
    write_list(folder / "train_list.mat", train, [1, 2, 1, 2, 1, 2])
    after = open_source(str(folder), DOGS)
    assert (after.class_names, after.splits) == (before.class_names, before.splits)
