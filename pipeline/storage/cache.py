"""Local copies of remote files, stored under their sha256. All processes share them; they are safe to delete.

    sha256/<sha256>/<name>    a copy, moved into place when it is complete
    sha256/<sha256>/.hold     every user of the copy beside it holds a shared lock on this file; mtime: the last use
    sha256/<sha256>/.fill     locked by the process that downloads; others that want the same file wait for it
    sha256/.room              locked briefly by the process that makes room
    sha256/.<random>.part     a download, already at its final length; locked by the process that writes it

The locks are flock's and end with their process, even if it is killed. So a copy in use is never evicted, and the
leftover of a killed download is removed when the next process makes room. The total size is limited.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hst.checkpoint_header import file_sha256
from pipeline.storage.errors import CacheFullError, StorageError
from pipeline.storage.locations import cache_limit_bytes, default_cache
from pipeline.storage.resuming import ResumingStream

CHUNK_BYTES = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")
_HOLD, _FILL, _ROOM = ".hold", ".fill", ".room"

# Files that this process has hashed: path -> the file's inode, length and mtime at that time.
_hashed: dict[Path, tuple[int, int, int]] = {}
# Copies that this process holds until it ends: path -> its lock.
_kept: dict[Path, int] = {}


@contextlib.contextmanager
def hold(name: str, sha256: str | None, open_stream: Callable[[], ResumingStream]) -> Iterator[Path]:
    """Yields a copy that is not evicted before the block ends.

    Args:
        name: File name of the copy.
        sha256: Expected sha256 of the content; a copy already in the cache is then used. None: any content.
        open_stream: Opens the content.

    Raises:
        StorageError: The content has another sha256.
        CacheFullError: The file is larger than the cache's limit, or the copies in use leave no room for it.
    """
    path, lock = _acquire(name, sha256, open_stream)
    try:
        yield path
    finally:
        os.close(lock)


def keep(name: str, sha256: str | None, open_stream: Callable[[], ResumingStream]) -> Path:
    """Like `hold`, but the copy is not evicted before this process ends."""
    path, lock = _acquire(name, sha256, open_stream)
    earlier = _kept.get(path)
    _kept[path] = lock
    if earlier is not None:
        os.close(earlier)
    return path


def copy_hashed(stream: BinaryIO, destination: BinaryIO) -> str:
    """Copies the rest of the stream; returns its sha256."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        destination.write(chunk)
    return digest.hexdigest()


def check_sha256(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise StorageError(f"{uri}: its sha256 is {found}, expected {expected}; it is damaged or not the file meant")


def _acquire(name: str, sha256: str | None, open_stream: Callable[[], ResumingStream]) -> tuple[Path, int]:
    """Returns the copy and the descriptor of the lock that holds it."""
    root = default_cache() / "sha256"
    name = name.lstrip(".") or "object"  # so that it is neither one of the names above nor a folder
    if sha256 is None:
        with _downloaded(root, open_stream) as (part, found, _):
            path = root / found / name
            with _holding(path.parent) as lock:
                _put(part, path)
        return path, lock
    if not _SHA256.fullmatch(sha256):
        raise StorageError(f"sha256 {sha256!r}: expected 64 of 0-9a-f")
    path = root / sha256 / name
    with _holding(path.parent) as lock:
        if not _is_intact(path, sha256):
            with _locked(path.parent / _FILL):
                if not _is_intact(path, sha256):  # no other process has downloaded it meanwhile
                    with _downloaded(root, open_stream) as (part, found, uri):
                        check_sha256(uri, found, sha256)
                        _put(part, path)
    return path, lock


@contextlib.contextmanager
def _holding(entry: Path) -> Iterator[int]:
    """Yields the descriptor that holds an entry; closes it only if the block raises."""
    lock = _hold(entry)
    try:
        yield lock
    except BaseException:
        os.close(lock)
        raise


def _hold(entry: Path) -> int:
    """Takes a shared lock on an entry and creates the entry if needed; waits for a process that is evicting it."""
    while True:
        entry.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(entry / _HOLD, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # evicted since mkdir
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(entry / _HOLD)):
                now = time.time_ns()
                os.utime(lock, ns=(now, now))
                return lock
        os.close(lock)  # the entry was evicted while this process waited for its lock


def _is_intact(path: Path, sha256: str) -> bool:
    """Whether the copy exists and has this sha256; hashes it only if the file has changed since the last time."""
    try:
        state = _state(path)
        if _hashed.get(path) != state:
            if file_sha256(path) != sha256:
                return False
            _hashed[path] = state
    except FileNotFoundError:
        return False
    return True


def _put(part: Path, path: Path) -> None:
    """Moves a finished download into place; its hash is already known."""
    os.replace(part, path)
    _hashed[path] = _state(path)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _downloaded(root: Path, open_stream: Callable[[], ResumingStream]) -> Iterator[tuple[Path, str, str]]:
    """Yields a file with the content (removed at the end if it was not moved), its sha256 and its address."""
    with open_stream() as stream, _reserve(root, stream.size, stream.uri) as file:
        part = Path(file.name)
        try:
            found = copy_hashed(io.BufferedReader(stream, CHUNK_BYTES), file)
            file.flush()
            yield part, found, stream.uri
        finally:
            part.unlink(missing_ok=True)


def _reserve(root: Path, size: int, uri: str) -> BinaryIO:
    """Opens a new, locked file of `size` bytes after making room; its length reserves the room."""
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / _ROOM):
        _sweep(root)
        _make_room(root, size, uri)
        file = open(root / f".{secrets.token_hex(8)}.part", "xb")  # noqa: SIM115 - the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(size)
    return file


def _sweep(root: Path) -> None:
    """Removes unfinished downloads whose writers have ended."""
    for part in root.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(part, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _make_room(root: Path, size: int, uri: str) -> None:
    """Evicts the least recently used entries until `size` bytes fit."""
    limit = cache_limit_bytes()
    if size > limit:
        raise CacheFullError(f"{uri}: {size:,} bytes, but the cache may hold {limit:,}; set HST_CACHE_BYTES to more")
    entries = sorted((path for path in root.iterdir() if path.is_dir()), key=_last_use)
    used = _bytes_below(root)
    for entry in entries:
        if used + size <= limit:
            return
        used -= _evict(entry)
    if used + size > limit:
        raise CacheFullError(
            f"{uri}: {size:,} bytes; of the {limit:,} that the cache may hold, {used:,} are in use by running "
            "processes; set HST_CACHE_BYTES to more"
        )


def _last_use(entry: Path) -> int:
    held = entry / _HOLD
    return (held if held.exists() else entry).stat().st_mtime_ns


def _evict(entry: Path) -> int:
    """Removes an entry; returns the bytes freed, 0 if it is in use."""
    with open(entry / _HOLD, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        freed = _bytes_below(entry)
        for path in entry.iterdir():
            if path.name != _HOLD:
                path.unlink()
        # The lock file goes last: a waiting process that finds it gone or replaced knows that the entry was evicted.
        (entry / _HOLD).unlink()
        with contextlib.suppress(OSError):  # another process is already creating it again
            entry.rmdir()
    return freed


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a download that was moved into place or given up meanwhile
            status = path.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, created if needed; the lock ends with the block in forked processes, too."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
