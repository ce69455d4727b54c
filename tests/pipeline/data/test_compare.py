"""Shards and the raw data that they were written from: what has changed since is named."""

import os
from pathlib import Path

import pytest

from pipeline.data.compare import differences
from pipeline.data.prepare import prepare_source
from pipeline.data.shards.manifest import Manifest
from pipeline.data.sources import open_source
from tests.pipeline.data.conftest import image_bytes
from tests.pipeline.data.every_layout import EVERY_LAYOUT, TASK


def make(folder: Path, layout: str) -> tuple[Path, dict[str, Manifest]]:
    """A task in a layout, and its shards."""
    place = folder / "raw" / TASK.folder
    place.mkdir(parents=True)
    EVERY_LAYOUT[layout].write(place)
    return place, prepare_source(open_source(str(place.parent), TASK), TASK, str(folder / "shards"))


def found(place: Path, manifests: dict[str, Manifest]) -> list[str]:
    return differences(open_source(str(place.parent), TASK), manifests)


def replace(path: Path, data: bytes) -> None:
    """Other bytes of the same size and date."""
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("layout", [name for name in EVERY_LAYOUT if name != "shards"])
def test_shards_are_what_the_raw_data_has_in_every_layout(layout: str, tmp_path: Path) -> None:
    seen: list[int] = []
    place, manifests = make(tmp_path, layout)
    assert differences(open_source(str(place.parent), TASK), manifests, progress=seen.append) == []
    assert len(seen) == sum(manifests[split].num_samples for split in ("train", "val", "test"))


@pytest.mark.parametrize(("layout", "file"), [("vtab-lists", "images/val3.png"), ("class-folders", "val/cat/3.png")])
def test_other_bytes_of_the_same_size_and_date_are_found(layout: str, file: str, tmp_path: Path) -> None:
    place, manifests = make(tmp_path, layout)
    replace(place / file, image_bytes((3, 3, ord("w"))))
    again = prepare_source(open_source(str(place.parent), TASK), TASK, str(tmp_path / "shards"))
    assert again == manifests, "size and date do not tell"
    (fault,) = found(place, manifests)
    assert fault.startswith("val: 1 image(s) in the shards are not what the raw data has under their names: val-00000")


def test_other_pixels_of_a_tar_or_a_pickle_are_found(tmp_path: Path) -> None:
    place, manifests = make(tmp_path / "tars", "tars")
    tar = place / "test/0.tar"
    replace(tar, tar.read_bytes().replace(image_bytes((2, 4, ord("t"))), image_bytes((2, 4, ord("u")))))
    (fault,) = found(place, manifests)
    assert fault.startswith("test: 1 image(s) in the shards are not what the raw data has")
    place, manifests = make(tmp_path / "pickles", "cifar-pickles")
    data = (place / "test").read_bytes()
    at = data.index(bytes([5 + 4]) * 3072)
    replace(place / "test", data[:at] + b"\7" + data[at + 1 :])
    (fault,) = found(place, manifests)
    assert fault.startswith("test: 1 image(s) in the shards are not what the raw data has")


def test_images_and_labels_that_came_went_or_moved_are_found_and_few_are_named(tmp_path: Path) -> None:
    place, manifests = make(tmp_path, "vtab-lists")
    lines = (place / "test.txt").read_text().splitlines()
    (place / "test.txt").write_text("\n".join([*lines[:5], f"{lines[5][:-1]}0"]) + "\n")
    (place / "train800val200.txt").unlink()
    train = (place / "train800.txt").read_text().splitlines()
    (place / "train800.txt").write_text("\n".join(reversed(train)) + "\n")
    told = found(place, manifests)
    assert len(told) == 4
    assert told[0].startswith("train: 12 image(s) in the shards are not in the raw data: train-000000-images-train0, ")
    assert told[0].endswith(" and 9 more")
    assert told[1].startswith("train: 12 image(s) in the raw data are not in the shards: ")
    assert told[2].startswith(
        "test: 1 image(s) in the shards are not what the raw data has under their names: test-000005"
    )
    assert told[3].startswith("test: 1 image(s) in the shards are not in the raw data: test-000006-")


def test_images_that_were_left_out_are_no_difference(tmp_path: Path) -> None:
    place, _ = make(tmp_path, "photo-folders")
    (place / "cat/test0.png").write_bytes(b"no image")
    source = open_source(str(place.parent), TASK)
    manifests = prepare_source(source, TASK, str(tmp_path / "shards"), max_skipped=1)
    assert differences(source, manifests) == []
