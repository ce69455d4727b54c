"""Reading a small CIFAR-100 in the Python version."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.prepare import prepare_task
from pipeline.data.sources import DataError, open_source
from pipeline.tasks.catalogue import Task

CIFAR = Task(
    name="cifar100-full",
    short_name="cifar100-full",
    folder="cifar100-full",
    other_folders=("cifar-100-python",),
    group="full",
    num_classes=3,
)
COUNTS = {"train": 12, "test": 3}


def pictures(split: str) -> np.ndarray:
    """Pixels as uint8, shape (images, 32, 32, 3)."""
    first = {"train": 0, "test": 1}[split]
    values = np.arange(COUNTS[split] * 32 * 32 * 3) * 7 + first
    return (values % 251).astype(np.uint8).reshape(-1, 32, 32, 3)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write(folder / "meta", {"fine_label_names": ["apple", "bee", "cup"], "coarse_label_names": ["thing"]})
    for split, count in COUNTS.items():
        data = pictures(split).transpose(0, 3, 1, 2).reshape(count, 3072)
        labels = [i % 3 for i in range(count)]
        write(folder / split, {"data": data, "fine_labels": labels, "coarse_labels": [0] * count})
    return folder


def write(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("place", ["cifar-100-python", "cifar100-full/cifar-100-python", "cifar100-full"])
def test_its_images_are_pixels_with_fine_labels_wherever_the_folder_is(place: str, tmp_path: Path) -> None:
    folder = make(tmp_path / place)
    source = open_source(str(tmp_path), CIFAR)
    assert (source.layout, source.class_names) == ("cifar-pickles", ["apple", "bee", "cup"])
    assert [len(source.splits[split]) for split in ("train", "val", "test")] == [9, 3, 3]
    for i, (sample, expected) in enumerate(zip(source.splits["test"], pictures("test"), strict=True)):
        assert (sample.label, sample.path) == (i, str(folder / "test"))
        assert sample.key == f"test-{i:06d}-{source.class_names[i]}"
        np.testing.assert_array_equal(sample.pixels, expected)
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(sample.read()))), expected)
    seen = {sample.key: sample.pixels for split in ("train", "val") for sample in source.splits[split]}
    assert len(seen) == 12
    for key, pixels in seen.items():
        np.testing.assert_array_equal(pixels, pictures("train")[int(key[6:12])])


def test_it_goes_into_shards(tmp_path: Path) -> None:
    make(tmp_path / "raw/cifar-100-python")
    manifests = prepare_task(CIFAR, str(tmp_path / "raw"), str(tmp_path / "shards"))
    assert {split: manifest.num_samples for split, manifest in manifests.items()} == {
        "train": 9,
        "val": 3,
        "trainval": 12,
        "test": 3,
    }


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_every_fault_is_told_and_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path / "cifar-100-python")
    write(folder / "train", {"data": _Runs(), "fine_labels": []})
    write(folder / "test", {"data": np.zeros((3, 3072), np.uint8), "fine_labels": [3, "bee", -1]})
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path), CIFAR)
    assert error.value.faults == [
        "train: refused: it asks for posix.system; nothing of a pickle is ever executed here",
        "test: image 0: label 3; 3 classes: 0 to 2",
        "test: image 1: label 'bee'; 3 classes: 0 to 2",
        "test: image 2: label -1; 3 classes: 0 to 2",
    ]
    assert not (tmp_path / "executed").exists()


def test_files_that_are_missing_or_of_other_shapes_are_told_together(tmp_path: Path) -> None:
    folder = make(tmp_path / "cifar-100-python")
    write(folder / "meta", {"label_names": ["a"]})
    write(folder / "train", {"data": np.zeros((2, 3073), np.uint8), "fine_labels": [0, 0]})
    (folder / "test").unlink()
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path), CIFAR)
    assert error.value.faults == [
        "meta: has no fine_label_names",
        "train: data is no array of shape (images, 3072)",
        f"test: no such file in {folder}",
    ]
    make_again = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}
    write(folder / "train", make_again)
    write(folder / "meta", {"fine_label_names": [1, 2]})
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path), CIFAR)
    assert error.value.faults[:2] == [
        "meta: fine_label_names is no list of texts",
        "train: fine_labels is no list of one label for each of 2 images",
    ]
