"""Shards on a real S3 server: written, used as a source, streamed, and checked before they are used."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hst.preprocessing import Preprocessing
from pipeline.data.batches.streaming import Split, open_split
from pipeline.data.errors import DataError
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.storage import files
from pipeline.tasks.catalogue import Task
from tests.pipeline.data.conftest import faults_of

KEY = (0, "vtab-tiny")


@pytest.fixture
def on_s3(s3_folder: Path, make_lists: Callable[..., Path], task: Task) -> dict[str, Manifest]:
    raw = make_lists(train=70, test=20)
    return prepare_task(task, str(raw), "s3://bucket/shards", samples_per_shard=16)


def batches(split: Split) -> list[tuple[list[int], list[int]]]:
    trained = split.train_batches(epoch=1, batch_size=8, seed_key=KEY)
    return [(batch.images.flatten().tolist(), batch.labels.tolist()) for batch in trained]


@pytest.mark.parametrize("cached", [False, True])
def test_shards_on_s3_are_those_on_disk_and_stream_in_the_same_order(
    cached: bool, on_s3: dict[str, Manifest], tmp_path: Path, task: Task
) -> None:
    local = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=16)
    assert {split: m.sha256 for split, m in on_s3.items()} == {split: m.sha256 for split, m in local.items()}
    remote = open_split(on_s3["trainval"].uri, Preprocessing(image_size=8), memory_limit_bytes=0, cached=cached)
    disk = open_split(local["trainval"].uri, Preprocessing(image_size=8))
    assert batches(remote) == batches(disk)
    assert not faults_of(on_s3["trainval"])


def test_a_second_preparation_writes_nothing_and_the_bucket_is_a_source(
    on_s3: dict[str, Manifest], s3_folder: Path, tmp_path: Path, task: Task
) -> None:
    before = {path: path.stat().st_mtime_ns for path in s3_folder.rglob("*")}
    assert prepare_task(task, str(tmp_path / "raw"), "s3://bucket/shards", samples_per_shard=16) == on_s3
    assert prepare_task(task, "s3://bucket/shards", str(tmp_path / "unused")) == on_s3
    assert {path: path.stat().st_mtime_ns for path in s3_folder.rglob("*")} == before
    assert not (tmp_path / "unused").exists()


def test_a_missing_bucket_is_told_as_such_and_a_missing_folder_by_where_it_looked(
    s3_folder: Path, task: Task, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no bucket s3://none$"):
        prepare_task(task, "s3://none/x", str(tmp_path / "unused"))
    with pytest.raises(DataError, match=r"s3://bucket/x/tiny: has none of .*train/manifest.json"):
        prepare_task(task, "s3://bucket/x", str(tmp_path / "unused"))


@pytest.mark.parametrize(("cached", "threads"), [(False, "fetch"), (True, "cache")])
def test_an_iteration_that_is_left_early_leaves_no_thread_behind(
    cached: bool, threads: str, on_s3: dict[str, Manifest]
) -> None:
    split = open_split(on_s3["train"].uri, Preprocessing(image_size=8), memory_limit_bytes=0, cached=cached)
    batches = split.train_batches(epoch=0, batch_size=4, seed_key=KEY)
    next(batches)
    assert any(thread.name.startswith(threads) for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(threads)]


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_object_is_an_error_that_names_it(
    cached: bool, damage: str, on_s3: dict[str, Manifest], s3_folder: Path
) -> None:
    uri = "s3://bucket/shards/vtab-tiny/test/test-000001.tar"
    data = bytearray(files.read_bytes(uri))
    if damage == "bit":
        data[600] ^= 1
        files.write_bytes(uri, bytes(data))
    elif damage == "cut":
        files.write_bytes(uri, bytes(data[:-512]))
    else:
        files.delete(uri)
    split = open_split(on_s3["test"].uri, Preprocessing(image_size=8), cached=cached)
    message = {"bit": "sample .*: its 2048 bytes", "cut": "has .* bytes", "gone": "no such shard"}[damage]
    if cached and damage != "gone":
        message = f"its sha256 is .*, expected {on_s3['test'].shards[1].sha256}"
    with pytest.raises((DataError, files.StorageError), match=rf"^s3://bucket/.*/test-000001.tar: {message}"):
        list(split.eval_batches(batch_size=4))
