"""Reading a small Oxford Flowers-102."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.sources import DataError, open_source
from pipeline.tasks.catalogue import Task

FLOWERS = Task(name="fgvc-flowers", short_name="flowers", folder="flowers", group="fgvc", num_classes=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "flowers"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 10):
        (folder / f"jpg/image_{number:05d}.jpg").write_bytes(b"")
    # The class of image n is n % 3 + 1, stored as a byte as in the original file.
    savemat(folder / "imagelabels.mat", {"labels": np.array([[n % 3 + 1 for n in range(1, 10)]], np.uint8)})
    savemat(folder / "setid.mat", {"trnid": [[7, 2, 3]], "valid": [[4, 5]], "tstid": [[1, 9, 8, 6]]})
    return folder


def test_its_three_splits_are_read_in_their_order_with_labels_from_0(folder: Path) -> None:
    source = open_source(str(folder.parent), FLOWERS)
    assert (source.layout, source.class_names, source.val_origin) == ("flowers", ["0", "1", "2"], "")
    found = {
        split: [(int(Path(sample.path).stem[-5:]), sample.label) for sample in samples]
        for split, samples in source.splits.items()
    }
    assert found == {
        "train": [(7, 1), (2, 2), (3, 0)],
        "val": [(4, 1), (5, 2)],
        "test": [(1, 1), (9, 0), (8, 2), (6, 0)],
    }
    (folder / "classnames.txt").write_text("rose\niris\ntulip\n")
    assert open_source(str(folder), FLOWERS).class_names == ["rose", "iris", "tulip"]


def test_every_fault_of_its_lists_is_told(folder: Path) -> None:
    savemat(folder / "setid.mat", {"trnid": [[1, 10]], "valid": [[0, 5]], "tstid": [[1, 2]]})
    (folder / "jpg/image_00005.jpg").unlink()
    (folder / "classnames.txt").write_text("rose\niris\n")
    with pytest.raises(DataError) as error:
        open_source(str(folder), FLOWERS)
    expected = [
        "setid.mat: trnid, image 10: imagelabels.mat has labels for the images 1 to 9",
        "setid.mat: valid, image 0: imagelabels.mat has labels for the images 1 to 9",
        "setid.mat: valid, image 5: label 2 is out of range; 2 classes: 0 to 1",
        "setid.mat: valid, image 5: no file 'jpg/image_00005.jpg'",
        "setid.mat: tstid, image 1: 'jpg/image_00001.jpg' stands in setid.mat: trnid, image 1 already",
        "setid.mat: tstid, image 2: label 2 is out of range",
    ]
    assert len(error.value.faults) == len(expected)
    for fault, part in zip(error.value.faults, expected, strict=True):
        assert part in fault


def test_files_that_are_missing_or_damaged_are_told_together(folder: Path) -> None:
    (folder / "imagelabels.mat").write_bytes(b"x" * 200)
    savemat(folder / "setid.mat", {"trnid": [[1]]})
    with pytest.raises(DataError) as error:
        open_source(str(folder), FLOWERS)
    assert error.value.faults[0].startswith("imagelabels.mat: no readable .mat file")
    assert error.value.faults[1:] == ["setid.mat: has no variable valid, tstid"]
