"""Copies of remote files on this machine's disk, by their sha256: for all processes, bounded, safe to delete.

    sha256/<sha256>/<name>    a copy, moved into place whole
    sha256/<sha256>/.hold     locked, shared, by everyone who uses a copy beside it; its time is that of the last use
    sha256/<sha256>/.fill     locked by the one who downloads; whoever wants the same waits for it
    sha256/.room              locked, for moments, by the one who looks for room
    sha256/.<random>.part     a download, as long as it is going to be; locked by the one who writes it

The locks are flock's, which end with their process, however that ends. So a copy in use is never evicted, and what a
killed process left of a download is swept when the next one looks for room.
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

# What this process has hashed: path -> the file's inode, length and time then.
_hashed: dict[Path, tuple[int, int, int]] = {}
# What this process holds until it ends: path -> its lock.
_kept: dict[Path, int] = {}


@contextlib.contextmanager
def hold(name: str, sha256: str | None, open_stream: Callable[[], ResumingStream]) -> Iterator[Path]:
    """A copy that nobody evicts before the block ends.

    Args:
        name: The copy's file name.
        sha256: What the content must be; a copy that is there already is then used as it is. None: whatever comes.
        open_stream: Opens the content.

    Raises:
        StorageError: the content is not what sha256 says.
        CacheFullError: it is longer than the cache may be, or the copies in use leave no room for it.
    """
    path, lock = _acquire(name, sha256, open_stream)
    try:
        yield path
    finally:
        os.close(lock)


def keep(name: str, sha256: str | None, open_stream: Callable[[], ResumingStream]) -> Path:
    """A copy that nobody evicts before this process ends; else as `hold`."""
    path, lock = _acquire(name, sha256, open_stream)
    earlier = _kept.get(path)
    _kept[path] = lock
    if earlier is not None:
        os.close(earlier)
    return path


def copy_hashed(stream: BinaryIO, destination: BinaryIO) -> str:
    """Copies to the stream's end; returns the sha256."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        destination.write(chunk)
    return digest.hexdigest()


def check_sha256(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise StorageError(f"{uri}: its sha256 is {found}, expected {expected}; it is damaged or not the file meant")


def _acquire(name: str, sha256: str | None, open_stream: Callable[[], ResumingStream]) -> tuple[Path, int]:
    """The copy and the descriptor that holds it."""
    root = default_cache() / "sha256"
    name = name.lstrip(".") or "object"  # never one of the names above, never a folder
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
                if not _is_intact(path, sha256):  # nobody else brought it meanwhile
                    with _downloaded(root, open_stream) as (part, found, uri):
                        check_sha256(uri, found, sha256)
                        _put(part, path)
    return path, lock


@contextlib.contextmanager
def _holding(entry: Path) -> Iterator[int]:
    """The descriptor that holds an entry; closed only where the block ends with an error."""
    lock = _hold(entry)
    try:
        yield lock
    except BaseException:
        os.close(lock)
        raise


def _hold(entry: Path) -> int:
    """A shared lock on an entry, which is made if it is not there; one who evicts it is waited for."""
    while True:
        entry.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(entry / _HOLD, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # evicted since
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(entry / _HOLD)):
                now = time.time_ns()
                os.utime(lock, ns=(now, now))
                return lock
        os.close(lock)  # of an entry that was evicted while its lock was waited for


def _is_intact(path: Path, sha256: str) -> bool:
    """Whether the copy is there and has the sha256; it is hashed again only if it has changed since it was."""
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
    """Moves a download, whose hash is known, into its place."""
    os.replace(part, path)
    _hashed[path] = _state(path)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _downloaded(root: Path, open_stream: Callable[[], ResumingStream]) -> Iterator[tuple[Path, str, str]]:
    """The content in a file (removed at the end, if it is still there), its sha256, and where it came from."""
    with open_stream() as stream, _reserve(root, stream.size, stream.uri) as file:
        part = Path(file.name)
        try:
            found = copy_hashed(io.BufferedReader(stream, CHUNK_BYTES), file)
            file.flush()
            yield part, found, stream.uri
        finally:
            part.unlink(missing_ok=True)


def _reserve(root: Path, size: int, uri: str) -> BinaryIO:
    """A new, locked file of a length for which there is room; its length tells others that this room is taken."""
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / _ROOM):
        _sweep(root)
        _make_room(root, size, uri)
        file = open(root / f".{secrets.token_hex(8)}.part", "xb")  # noqa: SIM115 - the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(size)
    return file


def _sweep(root: Path) -> None:
    """Removes the downloads whose writers are gone."""
    for part in root.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(part, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _make_room(root: Path, size: int, uri: str) -> None:
    """Evicts what was used longest ago until there is room for so many bytes."""
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
    """Removes an entry; returns its bytes, 0 where it is in use."""
    with open(entry / _HOLD, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        freed = _bytes_below(entry)
        for path in entry.iterdir():
            if path.name != _HOLD:
                path.unlink()
        # Last, since who finds another lock there than the one it waited for knows that the entry was evicted.
        (entry / _HOLD).unlink()
        with contextlib.suppress(OSError):  # somebody is making it again already
            entry.rmdir()
    return freed


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a download that was moved into place, or given up, meanwhile
            status = path.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock on a file that is made if need be; ends with the block in forked processes, too."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
