"""Reading a small Stanford Cars."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.sources import DataError, open_source
from pipeline.tasks.catalogue import Task

CARS = Task(name="fgvc-cars", short_name="cars", folder="cars", group="fgvc", num_classes=2)
FIELDS = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]


def write_list(path: Path, entries: list[tuple[int, str]], fields: list[str] | None = None) -> None:
    """Writes a list in the official format: an array of structs."""
    fields = FIELDS if fields is None else fields
    structs = np.array([(0, 0, 9, 9, *entry)[-len(fields) :] for entry in entries], [(name, object) for name in fields])
    savemat(path, {"annotations": structs.reshape(1, -1)})


def make(folder: Path, devkit: str) -> Path:
    for split, count in (("train", 6), ("test", 3)):
        (folder / f"cars_{split}").mkdir(parents=True)
        for i in range(1, count + 1):
            (folder / f"cars_{split}/{i:05d}.jpg").write_bytes(b"")
    (folder / devkit).mkdir(exist_ok=True)
    names = np.array([["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]], object)
    savemat(folder / devkit / "cars_meta.mat", {"class_names": names})
    write_list(folder / devkit / "cars_train_annos.mat", [(i % 2 + 1, f"{i:05d}.jpg") for i in range(1, 7)])
    write_list(folder / devkit / "cars_test_annos_withlabels.mat", [(2, "00003.jpg"), (1, "00001.jpg")])
    return folder


@pytest.mark.parametrize("devkit", ["devkit", ""])
def test_its_lists_are_read_in_devkit_or_beside_the_images(devkit: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "cars", devkit)
    source = open_source(str(tmp_path), CARS)
    assert source.layout == "cars"
    assert source.class_names == ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    found = [(sample.path, sample.label) for sample in source.splits["test"]]
    assert found == [(str(folder / "cars_test/00003.jpg"), 1), (str(folder / "cars_test/00001.jpg"), 0)]
    assert [len(source.splits[split]) for split in ("train", "val")] == [4, 2]


def test_every_fault_of_its_lists_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "cars", "devkit")
    write_list(
        folder / "devkit/cars_train_annos.mat",
        [(0, "00001.jpg"), (3, "00002.jpg"), (1, "../../secret.jpg"), (1, "00009.jpg"), (1, "00001.jpg")],
    )
    (tmp_path / "secret.jpg").write_bytes(b"")
    with pytest.raises(DataError) as error:
        open_source(str(folder), CARS)
    expected = [
        "cars_train_annos.mat: image 1: label -1 is out of range; 2 classes: 0 to 1",
        "cars_train_annos.mat: image 2: label 2 is out of range",
        "cars_train_annos.mat: image 3: 'cars_train/../../secret.jpg' leads out of",
        "cars_train_annos.mat: image 4: no file 'cars_train/00009.jpg'",
        "cars_train_annos.mat: image 5: 'cars_train/00001.jpg' stands in cars_train_annos.mat: image 1 already",
    ]
    assert len(error.value.faults) == len(expected)
    for fault, part in zip(error.value.faults, expected, strict=True):
        assert part in fault


def test_missing_names_and_a_test_list_without_labels_are_told_together(tmp_path: Path) -> None:
    folder = make(tmp_path / "cars", "devkit")
    (folder / "devkit/cars_meta.mat").unlink()
    write_list(folder / "devkit/cars_test_annos_withlabels.mat", [(1, "00001.jpg")], ["fname"])
    with pytest.raises(DataError) as error:
        open_source(str(folder), CARS)
    assert error.value.faults[0].startswith("cars_meta.mat: no such file in")
    assert error.value.faults[1:] == [
        "cars_test_annos_withlabels.mat: annotations: is no array of structs with the field class"
    ]


@pytest.mark.parametrize(("one", "other"), [("Acura TL 2012", "acura TL 2012"), ("Acura TL", "Acura TL "), ("7", "07")])
def test_names_of_classes_that_look_alike_are_a_fault(one: str, other: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "cars", "devkit")
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([[one, other]], object)})
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path), CARS)
    (fault,) = error.value.faults
    assert fault.startswith(f"class 1: {other!r} ({other.encode()!r}) and {one!r} ({one.encode()!r}, class 0)")
