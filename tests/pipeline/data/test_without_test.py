"""Train and val can be made without test: their bytes stay the same whatever became of test, and no file of test is
opened."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from pipeline.data.errors import DataError
from pipeline.data.prepare import prepare_task
from pipeline.data.raw.layouts import LAYOUTS
from pipeline.data.shards.manifest import Manifest
from pipeline.data.sources import Source, open_source
from tests.pipeline.data.conftest import faults_of
from tests.pipeline.data.every_layout import EVERY_LAYOUT, TASK

every_layout = pytest.mark.parametrize("layout", EVERY_LAYOUT)


def write(layout: str, root: Path) -> Path:
    """Writes the task's folder in a root of data."""
    folder = root / TASK.folder
    folder.mkdir(parents=True)
    EVERY_LAYOUT[layout].write(folder)
    return folder


def paths_of_test(layout: str, folder: Path, source: Source) -> list[Path]:
    """Every file and folder that belongs only to test; none is inside another."""
    own = [folder / name for name in EVERY_LAYOUT[layout].of_test]
    images = [Path(sample.path) for sample in source.splits.get("test", ())]
    return own + [path for path in images if not any(path.is_relative_to(other) for other in own)]


def prepare(data: Path, shards: Path, *, without_test: bool = False) -> dict[str, Manifest]:
    return prepare_task(TASK, str(data), str(shards), samples_per_shard=5, without_test=without_test)


def identities(manifests: dict[str, Manifest]) -> dict[str, str]:
    return {split: manifest.sha256 for split, manifest in manifests.items()}


def files(root: Path, *splits: str) -> dict[str, bytes]:
    """Everything below the folders of the given splits of the task, or below all folders."""
    task = root / TASK.name
    found = {str(path.relative_to(task)): path.read_bytes() for path in task.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not splits or name.split("/")[0] in splits}


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def link_to_itself(path: Path) -> None:
    """Replaces a path by a link that nobody can open (ELOOP)."""
    remove(path)
    path.symlink_to(path.name)


def make_another_kind(path: Path) -> None:
    """Makes a folder where a file is expected, or the other way round."""
    is_folder = path.is_dir()
    remove(path)
    path.touch() if is_folder else path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


# Photos without splits must keep their names: test is drawn from them.
DAMAGES = [
    (layout, damage)
    for layout in EVERY_LAYOUT
    for damage in (
        (empty, link_to_itself) if layout == "photo-folders" else (remove, link_to_itself, make_another_kind)
    )
]


def test_every_layout_is_here() -> None:
    assert set(EVERY_LAYOUT) == {layout.name for layout in LAYOUTS} | {"shards"}


@pytest.mark.parametrize(("layout", "damage"), DAMAGES)
def test_train_and_val_are_the_same_whatever_became_of_test(
    layout: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    folder = write(layout, data)
    whole = open_source(str(data), TASK)
    assert whole.layout == layout
    assert list(whole.splits) == ([] if layout == "shards" else ["train", "val", "test"])
    manifests = prepare(data, tmp_path / "whole")
    paths = paths_of_test(layout, folder, whole)
    assert paths
    for path in paths:
        damage(path)

    part = open_source(str(data), TASK, without_test=True)
    own = ("train", "val")
    assert part == dataclasses.replace(
        whole,
        splits={split: samples for split, samples in whole.splits.items() if split in own},
        manifests={split: manifest for split, manifest in whole.manifests.items() if split in own},
    )
    assert part.num_samples("trainval") == whole.num_samples("trainval")
    made = prepare(data, tmp_path / "part", without_test=True)
    assert identities(made) == {split: manifests[split].sha256 for split in own}
    assert [fault for manifest in made.values() for fault in faults_of(manifest)] == []
    written = files(tmp_path / "part")
    assert written == files(tmp_path / "whole", *own)

    with pytest.raises((DataError, OSError)) as error:
        prepare(data, tmp_path / "part")
    assert (EVERY_LAYOUT[layout].missed or str(paths[0].relative_to(folder))) in str(error.value)
    assert files(tmp_path / "part", *own) == written


@every_layout
def test_a_later_call_with_test_adds_test_to_the_same_shards(layout: str, tmp_path: Path) -> None:
    data, shards = tmp_path / "data", tmp_path / "shards"
    write(layout, data)
    prepare(data, shards, without_test=True)
    before = {path: path.stat() for path in shards.rglob("*") if path.is_file()}
    manifests = prepare(data, shards)
    assert identities(manifests) == identities(prepare(data, tmp_path / "at once"))
    assert list(manifests) == ["train", "val", "trainval", "test"]
    assert files(shards) == files(tmp_path / "at once")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == {
        path: (status.st_ino, status.st_mtime_ns) for path, status in before.items()
    }


_opened: set[str] | None = None


@cache
def _listen() -> None:
    """Hooks into every open and every listing of a folder by Python code; the hook stays until the process ends."""

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if _opened is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        if isinstance(arguments[0], str | bytes | os.PathLike):  # not the number of an open file
            _opened.add(os.path.abspath(os.fsdecode(arguments[0])))

    sys.addaudithook(hear)


@contextmanager
def listening() -> Iterator[set[str]]:
    """Collects every path that is opened meanwhile."""
    global _opened
    _listen()
    _opened = opened = set[str]()
    try:
        yield opened
    finally:
        _opened = None


@every_layout
def test_no_path_of_test_is_opened(layout: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    folder = write(layout, data)
    paths = paths_of_test(layout, folder, open_source(str(data), TASK))

    def of_test(opened: set[str]) -> set[Path]:
        return {path for path in paths if any(Path(name).is_relative_to(path) for name in opened)}

    with listening() as opened:
        open_source(str(data), TASK, without_test=True)
        prepare(data, tmp_path / "shards", without_test=True)
    assert any(Path(name).is_relative_to(folder) for name in opened)
    assert of_test(opened) == set()
    with listening() as opened:
        prepare(data, tmp_path / "whole")
    assert of_test(opened) == set(paths)


@pytest.mark.parametrize("layout", [*(layout.name for layout in LAYOUTS if layout.is_remote), "shards"])
def test_objects_of_test_are_not_needed_either(layout: str, tmp_path: Path, s3_folder: Path) -> None:
    folder = write(layout, tmp_path / "data")
    whole = identities(prepare(tmp_path / "data", tmp_path / "whole"))
    for name in EVERY_LAYOUT[layout].of_test:
        remove(folder / name)
    shutil.copytree(tmp_path / "data", s3_folder / "bucket", dirs_exist_ok=True)
    made = prepare_task(TASK, "s3://bucket", str(tmp_path / "part"), samples_per_shard=5, without_test=True)
    assert identities(made) == {split: whole[split] for split in ("train", "val")}
    with pytest.raises(DataError, match=EVERY_LAYOUT[layout].missed):
        open_source("s3://bucket", TASK)


def test_what_differs_from_the_benchmark_is_said_of_what_was_read(tmp_path: Path) -> None:
    write("vtab-lists", tmp_path)
    task = dataclasses.replace(TASK, train_size=12, val_size=200, test_size=1000)
    source = open_source(str(tmp_path), task, without_test=True)
    assert source.subset_reasons == ["val has 6 of 200 images"]


def test_shards_of_a_changed_source_are_no_whole_task_until_test_is_added(tmp_path: Path) -> None:
    """Otherwise the old test would pass for theirs."""
    data, shards = tmp_path / "data", tmp_path / "shards"
    folder = write("photo-folders", data)
    prepare(data, shards)
    shutil.copy(folder / "cat/train0.png", folder / "cat/more.png")
    prepare(data, shards, without_test=True)
    with pytest.raises(DataError, match="trainval: no manifest"):
        open_source(str(shards), TASK)
    assert identities(prepare(data, shards)) == identities(prepare(data, tmp_path / "fresh"))
