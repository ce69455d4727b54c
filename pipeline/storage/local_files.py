"""Atomic writes on a local disk. Callers use pipeline.storage.files."""

import contextlib
import errno
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from typing import IO

from pipeline.storage.errors import DiskFullError, StorageError, is_full

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def in_place_of(path: str) -> Iterator[IO[bytes]]:
    """Yields a file to write, which replaces `path` when the block ends without an error."""
    with _temporary_beside(path) as (temporary, file):
        yield file
        _flush(file)
        os.replace(temporary, path)
        _flush_folder(path)


def put_once(path: str, data: bytes) -> bool:
    """Writes a file unless it exists; returns whether it did. Of several simultaneous writers, one wins."""
    with _temporary_beside(path) as (temporary, file):
        file.write(data)
        _flush(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if not _move_where_nothing_is(temporary, path):
                return False
        _flush_folder(path)
        return True


def check_writable(folder: str) -> None:
    """Writes and removes a file in the folder, or in its nearest existing parent; StorageError if that fails."""
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise StorageError(f"{folder}: {there} is no folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise StorageError(f"{folder}: nothing can be written in {there} ({error.strerror})") from error


@contextlib.contextmanager
def _temporary_beside(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields a new file in the same folder, so that it can be moved into place; removes it if it was not moved."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.part")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "xb") as file:
            yield temporary, file
    except OSError as error:
        if is_full(error):
            raise DiskFullError.of(path, error) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _move_where_nothing_is(temporary: str, path: str) -> bool:
    """Replaces `os.link` on file systems without hard links: a rename under a lock that every writer here takes.

    The lock is on the folder itself: it ends with a killed process, and no lock file is left behind.
    """
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return False
        os.rename(temporary, path)
        return True
    finally:
        os.close(folder)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(path: str) -> None:
    """Makes the new file name survive a power cut."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
