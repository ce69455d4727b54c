"""The demo data is complete, equal for equal seeds, and its labels fit the images."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import demo
from pipeline.data.demo import DEMO_TASKS, SPLITS, make_demo_data, make_demo_task
from pipeline.tasks.catalogue import TASKS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo_data(folder)
    return folder


def read_list(path: Path) -> list[tuple[str, int]]:
    return [(line.split()[0], int(line.split()[1])) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_tasks_are_those_of_the_catalogue() -> None:
    catalogued = {task.folder: task.num_classes for task in TASKS.values() if task.group == "demo"}
    assert {name: len(task.class_names) for name, task in DEMO_TASKS.items()} == catalogued


@pytest.mark.parametrize("name", DEMO_TASKS)
def test_every_listed_image_is_there_and_every_class_is_in_every_split(root: Path, name: str) -> None:
    folder = root / name
    lists = {
        split: read_list(folder / f"{file}.txt")
        for split, file in {"train": "train800", "val": "val200", "trainval": "train800val200", "test": "test"}.items()
    }
    assert {split: len(lines) for split, lines in lists.items() if split != "trainval"} == SPLITS
    assert lists["trainval"] == lists["train"] + lists["val"]
    listed = [path for split in SPLITS for path, _ in lists[split]]
    assert len(set(listed)) == len(listed)
    assert sorted(listed) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    classes = (folder / "classnames.txt").read_text().splitlines()
    assert classes == list(DEMO_TASKS[name].class_names)
    for split in SPLITS:
        assert {label for _, label in lists[split]} == set(range(len(classes))), split
    for path in listed[::50]:
        assert Image.open(folder / path).size == (64, 64)


def test_no_image_is_in_two_splits(root: Path) -> None:
    for name in DEMO_TASKS:
        hashes = Counter(digest for path, digest in contents(root / name).items() if path.endswith(".png"))
        assert max(hashes.values()) == 1, name


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(root: Path, tmp_path: Path) -> None:
    for name in ("digits", "shape_count"):
        same = make_demo_task(tmp_path / name, DEMO_TASKS[name])
        other = make_demo_task(tmp_path / f"{name}-1", DEMO_TASKS[name], seed=1)
        assert contents(same) == contents(root / name)
        assert contents(other)["images/test/000000.png"] != contents(same)["images/test/000000.png"]


def test_the_label_of_shape_x_is_the_position_from_left_to_right(root: Path) -> None:
    folder = root / "shape_x"
    for path, label in read_list(folder / "test.txt")[:60]:
        columns = np.flatnonzero(np.asarray(Image.open(folder / path).convert("L")).max(axis=0) > 127)
        middle = (columns[0] + columns[-1]) / 2
        assert abs(middle - (10 + 44 * (label + 0.5) / 8)) < 5  # half a bin (2.75) plus the skew of a rotated heart


def test_the_label_of_shape_count_is_the_number_of_separate_shapes_less_one(root: Path) -> None:
    from scipy.ndimage import label as connected_parts

    folder = root / "shape_count"
    for path, label in read_list(folder / "test.txt")[:60]:
        pixels = np.asarray(Image.open(folder / path)).astype(int)
        background = np.median(pixels.reshape(-1, 3), axis=0)
        _, parts = connected_parts(np.abs(pixels - background).max(axis=2) > 60)
        assert parts == label + 1, path


def test_what_is_there_is_left_as_it_is(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_demo_data(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    make_demo_task(tmp_path / "digits", DEMO_TASKS["digits"], seed=1)
    with pytest.raises(ValueError, match=r"digits holds .*'seed': 1.*remove it, or name another folder"):
        make_demo_data(tmp_path)
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match="own holds something else"):
        make_demo_task(tmp_path / "own", DEMO_TASKS["digits"])


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(root: Path, task: demo.DemoTask, split: str, seed: int) -> list[str]:
        if split == "test":
            raise OSError("disk full")
        return ["images/train800val200/000000.png 0\n"]

    monkeypatch.setattr(demo, "_write_split", fails)
    with pytest.raises(OSError, match="disk full"):
        make_demo_task(tmp_path / "digits", DEMO_TASKS["digits"])
    assert list(tmp_path.iterdir()) == []
