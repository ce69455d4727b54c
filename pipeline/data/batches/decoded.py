"""Decoded images of a split in memory, shared by all processes of a node that train on them.

The pixels of an index's samples lie in one file under /dev/shm. Its name is a hash of all that they depend on: the
index, the preprocessing and the version of Pillow. So train is decoded once for the selection run, the final run (whose
trainval is train and val) and all workers of a node. Every process that uses a file holds a lock on it, which the
system releases when the process is killed. The next process that opens a file removes those that nobody holds. Without
/dev/shm, or with too little room in it, a process keeps its own pixels.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from hst.preprocessing import Preprocessing
from pipeline.data.shards.manifest import Manifest

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class _Part:
    """The n samples of one index; `first` is the number of its first sample in the split."""

    first: int
    decoded: np.ndarray
    """uint8 (n,): 1 if a sample's pixels are there. It is set after them; no process sees a byte half written."""
    pixels: np.ndarray
    """uint8 (n, 3, S, S)."""


class DecodedSplit:
    """Pixels of a split's samples, by their number. A sample that any process has decoded is there for all."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._firsts = np.array([part.first for part in parts])

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the samples, int64 (n,), are decoded: bool (n,)."""
        return self._gather(numbers, [part.decoded for part in self._parts]).astype(bool)

    def place(self, number: int) -> np.ndarray:
        """The array for a sample's pixels, uint8 (3, S, S). Call `mark` once they are written."""
        part = self._parts[int(np.searchsorted(self._firsts, number, side="right")) - 1]
        return part.pixels[number - part.first]

    def mark(self, numbers: np.ndarray) -> None:
        """Marks the samples, int64 (n,), as decoded."""
        owner = np.searchsorted(self._firsts, numbers, side="right") - 1
        for i, part in enumerate(self._parts):
            part.decoded[numbers[owner == i] - part.first] = 1

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """A copy, uint8 (n, 3, S, S), of decoded samples."""
        return self._gather(numbers, [part.pixels for part in self._parts])

    def _gather(self, numbers: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
        if len(arrays) == 1:
            return np.take(arrays[0], numbers, axis=0)
        found = np.empty((len(numbers), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        owner = np.searchsorted(self._firsts, numbers, side="right") - 1
        for i, (part, array) in enumerate(zip(self._parts, arrays, strict=True)):
            found[owner == i] = array[numbers[owner == i] - part.first]
        return found


def open_decoded(manifest: Manifest, counts: Sequence[int], preprocessing: Preprocessing) -> DecodedSplit:
    """The decoded samples of a split that this node has so far.

    Args:
        manifest: The split's manifest.
        counts: Number of samples in each of the manifest's indexes.
        preprocessing: Makes the pixels.
    """
    parts, first = [], 0
    for file, count in zip(manifest.indexes, counts, strict=True):
        text = json.dumps([file.sha256, preprocessing.to_dict(), PIL.__version__], sort_keys=True)
        shape = (count, 3, preprocessing.image_size, preprocessing.image_size)
        parts.append(_open_part(hashlib.sha256(text.encode()).hexdigest(), first, shape))
        first += count
    return DecodedSplit(parts)


def _open_part(key: str, first: int, shape: tuple[int, int, int, int]) -> _Part:
    num_bytes = shape[0] + int(np.prod(shape))
    memory = _shared(key, num_bytes)
    if memory is None:
        # Pages of an empty array take no memory until they are written.
        return _Part(first, np.zeros(shape[0], dtype=np.uint8), np.empty(shape, dtype=np.uint8))
    decoded = np.frombuffer(memory, dtype=np.uint8, count=shape[0])
    pixels = np.frombuffer(memory, dtype=np.uint8, offset=shape[0]).reshape(shape)
    return _Part(first, decoded, pixels)


def _shared(key: str, num_bytes: int) -> mmap.mmap | None:
    """The mapped file of this key, held until the mapping is freed; None if it cannot be opened."""
    if not SHARED_MEMORY.is_dir():
        return None
    folder = SHARED_MEMORY / f"hst-decoded-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return None  # somebody else's folder of this name
        _sweep(folder)
        descriptor = _open_held(folder / key)
    except OSError:
        return None
    room, there = os.statvfs(folder), os.fstat(descriptor).st_size
    try:
        # Half of /dev/shm stays free: Ray's object store takes its memory there later.
        if num_bytes - there > (room.f_bavail - room.f_blocks // 2) * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Reserve the memory now: a page that is missing later would kill the process.
        os.posix_fallocate(descriptor, 0, num_bytes)
        memory = mmap.mmap(descriptor, num_bytes)
    except OSError:
        _release(descriptor, folder / key)
        return None
    weakref.finalize(memory, _release, descriptor, folder / key)
    return memory


def _open_held(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed between opening and locking: create it again


def _release(descriptor: int, path: Path) -> None:
    """Releases a file, and removes it if nobody else holds it."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # else it was removed already, and the name may be another file's
            path.unlink()
    os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes files that nobody holds, which killed processes left behind."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            _release(os.open(path, os.O_RDWR | os.O_NOFOLLOW), path)
