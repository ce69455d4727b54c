"""Decoded images of a split in memory, shared by every process of a node that trains on them.

The pixels of an index's samples lie in one file under /dev/shm, named by what they are a function of (the samples'
hashes and the preprocessing): train's are decoded once for the selection run, the final run (whose trainval is train
and val) and all workers of a node. A file is held by a lock of every process that uses it, which the system takes back
from one that is killed; what nobody holds is removed by the next process that opens any. Where there is no /dev/shm,
or too little room in it, a process keeps its own pixels.
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
    """The samples of one index: n of them, of which the first is number `first` of the split."""

    first: int
    decoded: np.ndarray
    """uint8 (n,): 1 where the pixels are there. Set after they are: one byte is seen whole by every process."""
    pixels: np.ndarray
    """uint8 (n, 3, S, S)."""


class DecodedSplit:
    """Pixels of a split's samples, by their number; a sample that was decoded by any process is there for all."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._firsts = np.array([part.first for part in parts])

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """bool (n,): which of the samples int64 (n,) are there."""
        return self._gather(numbers, [part.decoded for part in self._parts]).astype(bool)

    def place(self, number: int) -> np.ndarray:
        """Where a sample's pixels go, uint8 (3, S, S); `mark` it when they are there."""
        part = self._parts[int(np.searchsorted(self._firsts, number, side="right")) - 1]
        return part.pixels[number - part.first]

    def mark(self, numbers: np.ndarray) -> None:
        """Says that the pixels of samples int64 (n,) are in their places."""
        owner = np.searchsorted(self._firsts, numbers, side="right") - 1
        for i, part in enumerate(self._parts):
            part.decoded[numbers[owner == i] - part.first] = 1

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """A copy, uint8 (n, 3, S, S), of samples that are there."""
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
    """The decoded samples of a split, as far as this node has them.

    Args:
        manifest: Of the split.
        counts: Samples of each of the manifest's indexes.
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
        # Pages of an empty array take no memory before they are written.
        return _Part(first, np.zeros(shape[0], dtype=np.uint8), np.empty(shape, dtype=np.uint8))
    decoded = np.frombuffer(memory, dtype=np.uint8, count=shape[0])
    pixels = np.frombuffer(memory, dtype=np.uint8, offset=shape[0]).reshape(shape)
    return _Part(first, decoded, pixels)


def _shared(key: str, num_bytes: int) -> mmap.mmap | None:
    """The file of this key, mapped, and held until the mapping goes; None where it cannot be had."""
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
        # Half of the whole stays free: Ray's object store takes what it needs there later.
        if num_bytes - there > (room.f_bavail - room.f_blocks // 2) * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Reserved now, since a page that cannot be had later would kill the process.
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
        os.close(descriptor)  # removed between the two: it is made anew


def _release(descriptor: int, path: Path) -> None:
    """Lets go of a file, and removes it if nobody else holds it."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # else it was removed already, and the name may be another file's
            path.unlink()
    os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes what killed processes left: files that nobody holds."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            _release(os.open(path, os.O_RDWR | os.O_NOFOLLOW), path)
