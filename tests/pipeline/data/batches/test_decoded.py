"""Decoded images in memory: readers of the same samples share them, and the last process to hold them removes them."""

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from hst.preprocessing import Preprocessing
from pipeline.data.batches import decoded
from pipeline.data.batches.streaming import Split, open_split
from pipeline.data.shards.manifest import Manifest

MakeShards = Callable[..., dict[str, Manifest]]
ROOT = Path(__file__).parents[4]
ROOMY = os.statvfs_result((4096, 4096, 100_000, 90_000, 90_000, 0, 0, 0, 0, 255))
READER = """
import os, sys
from pathlib import Path
from hst.preprocessing import Preprocessing
from pipeline.data.batches import decoded
from pipeline.data.batches.streaming import open_split
decoded.SHARED_MEMORY = Path(sys.argv[2])
os.statvfs = lambda path: os.statvfs_result((4096, 4096, 100_000, 90_000, 90_000, 0, 0, 0, 0, 255))
split = open_split(sys.argv[1], Preprocessing(image_size=8))
print([red for batch in split.eval_batches(batch_size=5) for red in batch.images[:, 0, 0, 0].tolist()])
if sys.argv[3] == "killed":
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shared files; it stands in for /dev/shm."""
    root = tmp_path / "shm"
    root.mkdir()
    monkeypatch.setattr(decoded, "SHARED_MEMORY", root)
    monkeypatch.setattr(os, "statvfs", lambda path: ROOMY)
    return root / f"hst-decoded-{os.getuid()}"


def opened(manifest: Manifest, size: int = 8) -> Split:
    return open_split(manifest.uri, Preprocessing(image_size=size))


def numbers(split: Split) -> list[int]:
    return [red for batch in split.eval_batches(batch_size=5) for red in batch.images[:, 0, 0, 0].tolist()]


def remove_tars(manifest: Manifest) -> None:
    for shard in manifest.shards:
        Path(manifest.shard_uri(shard)).unlink()


def in_another_process(manifest: Manifest, memory: Path, end: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", READER, manifest.uri, str(memory.parent), end]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)


def test_what_one_process_decoded_is_there_for_another(make_shards: MakeShards, memory: Path) -> None:
    manifest = make_shards(train=12)["train"]
    split = opened(manifest)
    assert numbers(split) == list(range(12))
    remove_tars(manifest)
    done = in_another_process(manifest, memory)
    assert done.stdout == f"{list(range(12))}\n", done.stderr


def test_trainval_is_what_train_and_val_have_decoded(make_shards: MakeShards, memory: Path) -> None:
    manifests = make_shards(train=12, val=6)
    parts = [opened(manifests["train"]), opened(manifests["val"])]
    for part in parts:
        numbers(part)
    remove_tars(manifests["trainval"])
    whole = opened(manifests["trainval"])
    assert numbers(whole) == [*range(12), *range(6)]
    assert len(list(memory.iterdir())) == 2
    orders = [
        [batch.images[:, 0, 0, 0].tolist() for batch in whole.train_batches(epoch=e, batch_size=4, seed_key=(0,))]
        for e in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_other_pixels_are_kept_apart(make_shards: MakeShards, memory: Path) -> None:
    manifests = make_shards(train=12, val=12)
    splits = [opened(manifests["train"]), opened(manifests["train"], 9), opened(manifests["val"])]
    assert len(list(memory.iterdir())) == 3
    assert [numbers(split) for split in splits] == [list(range(12))] * 3


def test_a_file_goes_with_the_last_that_holds_it(make_shards: MakeShards, memory: Path) -> None:
    manifest = make_shards(train=12)["train"]
    one, other = opened(manifest), opened(manifest)
    numbers(one)
    del one
    gc.collect()
    assert len(list(memory.iterdir())) == 1
    assert numbers(other) == list(range(12))
    del other
    gc.collect()
    assert list(memory.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(make_shards: MakeShards, memory: Path) -> None:
    manifests = make_shards(train=12)
    done = in_another_process(manifests["train"], memory, "killed")
    assert done.stdout == f"{list(range(12))}\n", done.stderr
    (left,) = memory.iterdir()
    split = opened(manifests["val"])
    assert not left.exists()
    assert numbers(split) == list(range(6))


@pytest.mark.parametrize("lack", ["room", "room later", "shared memory", "a folder of our own", "a link's end"])
def test_without_room_a_process_keeps_its_own_pixels(
    lack: str, make_shards: MakeShards, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_shards(train=12)["train"]
    if lack == "room":
        full = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path: full)
    elif lack == "room later":

        def refuse(descriptor: int, offset: int, length: int) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    elif lack == "shared memory":
        monkeypatch.setattr(decoded, "SHARED_MEMORY", memory / "none")
    else:
        if lack == "a folder of our own":
            (memory.parent / "elsewhere").mkdir()
        memory.symlink_to(memory.parent / "elsewhere")
    split = opened(manifest)
    assert numbers(split) == list(range(12))
    remove_tars(manifest)
    assert numbers(split) == list(range(12))
    assert not memory.exists() or list(memory.iterdir()) == []


def test_joining_what_is_there_needs_no_room(
    make_shards: MakeShards, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_shards(train=12)["train"]
    first = opened(manifest)
    numbers(first)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((1, 1, 100, 50, 50, 0, 0, 0, 0, 255)))
    remove_tars(manifest)
    assert numbers(opened(manifest)) == list(range(12))
