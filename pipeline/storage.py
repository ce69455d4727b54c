"""Local paths and s3:// addresses behind the same few functions.

A write is seen whole or not at all: local files are written beside their place, flushed and moved into it; S3
objects appear when their upload is complete. Missing files are FileNotFoundError in both worlds; what S3 refuses is
a StorageError. boto3 is imported when the first s3:// address is used, and finds endpoint and credentials in the
standard AWS_* variables.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import posixpath
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from hst.checkpoint_header import file_sha256 as file_sha256
from pipeline import s3
from pipeline.locations import default_cache
from pipeline.s3 import StorageError as StorageError

CHUNK_BYTES = 1 << 20
DOWNLOAD_ATTEMPTS = 4
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def is_remote(uri: str) -> bool:
    """Whether the address is s3:// rather than a local path."""
    return uri.startswith(s3.SCHEME)


def absolute(uri: str) -> str:
    """The address in full: an absolute local path (~ expanded) or s3://bucket/key, without a slash at the end.

    Raises:
        StorageError: it is empty or of another kind (http://, pipe:, ...).
    """
    if is_remote(uri):
        bucket, key = s3.split(uri)
        return s3.unsplit(bucket, key)
    path = uri.removeprefix("file://")
    if _SCHEME.match(path):  # s3a://, gs://, S3://: never a local folder of that name
        raise StorageError(f"address {uri!r}: expected a local path, file:///path or s3://bucket/prefix")
    scheme, colon, _ = path.partition(":")
    if not path or "\0" in path or (colon and scheme.isalpha() and len(scheme) > 1 and not os.path.exists(path)):
        raise StorageError(f"address {uri!r}: expected a local path or s3://bucket/prefix")
    return os.path.abspath(os.path.expanduser(path))


def join(uri: str, *parts: str) -> str:
    """The address of something below (or, with .., beside) another; parts are relative.

    Raises:
        StorageError: a part is absolute or leads out of the bucket.
    """
    for part in parts:
        if posixpath.isabs(part) or "://" in part or "\0" in part:
            raise StorageError(f"{part!r} under {uri}: expected a relative path")
    if not is_remote(uri):
        return os.path.normpath(os.path.join(absolute(uri), *parts))
    bucket, key = s3.split(uri)
    joined = posixpath.normpath(posixpath.join(key, *parts))
    if joined == ".." or joined.startswith("../"):
        raise StorageError(f"{'/'.join(parts)!r} under {uri}: leads out of the bucket")
    return s3.unsplit(bucket, "" if joined == "." else joined)


def size(uri: str) -> int:
    """Bytes of a file or object; FileNotFoundError if there is none."""
    if is_remote(uri):
        return s3.size(uri)
    if not os.path.isfile(absolute(uri)):
        raise FileNotFoundError(f"no file {uri}")
    return os.path.getsize(absolute(uri))


def exists(uri: str) -> bool:
    """Whether there is a file or object of that name (a folder is none)."""
    try:
        size(uri)
    except FileNotFoundError:
        return False
    return True


def open_read(uri: str) -> BinaryIO:
    """Opens for reading once, front to back; the caller closes it."""
    return s3.open_read(uri) if is_remote(uri) else cast(BinaryIO, open(absolute(uri), "rb"))


def read_bytes(uri: str) -> bytes:
    """The whole content."""
    with open_read(uri) as stream:
        return stream.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Replaces the content at once: a reader sees the old or the new, whole."""
    if is_remote(uri):
        s3.put(uri, data)
        return
    with _in_place_of(absolute(uri)) as file:
        file.write(data)


def put_once(uri: str, data: bytes) -> bool:
    """Writes only where nothing is yet; returns whether this call wrote. Of several writers at once one wins.

    On S3 that holds where the server knows If-None-Match, on disk where there are hard links; elsewhere two writers in
    the same instant, on two machines, may both think so.
    """
    if is_remote(uri):
        return s3.put_once(uri, data)
    path = absolute(uri)
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


def copy(source: str, destination: str) -> None:
    """Copies one file or object between any two places."""
    with open_read(source) as stream:
        if is_remote(destination):
            s3.upload(stream, destination)
            return
        with _in_place_of(absolute(destination)) as file:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)


def delete(uri: str) -> None:
    """Removes one file or object; nothing happens where there is none."""
    if is_remote(uri):
        s3.delete(uri)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(absolute(uri))


def list_prefix(uri: str) -> list[str]:
    """Every file below a folder or prefix, as sorted relative paths with /; none where there is no such folder."""
    if is_remote(uri):
        return s3.list_prefix(uri)
    root = absolute(uri)
    found = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sorted(Path(path).relative_to(root).as_posix() for path in found)


def fetch(uri: str, *, sha256: str | None = None) -> Path:
    """The address as a local file: a local path as it is, an object copied into the cache under its sha256.

    Args:
        uri: A local path or s3:// address.
        sha256: What the content must be; a copy that is already in the cache is then used without a download.

    Raises:
        StorageError: the content is not what sha256 says.
        FileNotFoundError: there is no such file.
    """
    if not is_remote(uri):
        path = Path(absolute(uri))
        if not path.is_file():
            raise FileNotFoundError(f"no file {uri}")
        if sha256 is not None:
            _check(uri, file_sha256(path), sha256)
        return path
    name = posixpath.basename(uri)
    cache = default_cache() / "sha256"
    if sha256 is not None:
        cached = cache / sha256 / name
        if cached.is_file() and file_sha256(cached) == sha256:
            return cached
    cache.mkdir(parents=True, exist_ok=True)
    with _temporary_beside(str(cache / "download")) as (temporary, file):
        found = download(uri, cast(BinaryIO, file))
        if sha256 is not None:
            _check(uri, found, sha256)
        _flush(file)
        cached = cache / found / name
        cached.parent.mkdir(exist_ok=True)
        os.replace(temporary, cached)
    return cached


def ray_filesystem(uri: str) -> tuple[Any, str]:
    """Ray Train's storage_filesystem and storage_path: pyarrow's S3 at our endpoint, or None for the local disk."""
    return s3.ray_filesystem(uri) if is_remote(uri) else (None, absolute(uri))


def download(uri: str, destination: BinaryIO) -> str:
    """Copies into an empty, seekable local file; returns the sha256. A transfer that breaks off is begun again.

    Raises:
        StorageError: it broke off DOWNLOAD_ATTEMPTS times.
    """
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        destination.seek(0)
        destination.truncate()
        digest = hashlib.sha256()
        try:
            with open_read(uri) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
                    destination.write(chunk)
            break
        except s3.BrokenTransferError as error:
            if attempt == DOWNLOAD_ATTEMPTS:
                raise StorageError(f"{error}; so it went {attempt} times") from error
            time.sleep(0.5 * 2**attempt)
    return digest.hexdigest()


def _check(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise StorageError(f"{uri}: its sha256 is {found}, expected {expected}; it is damaged or not the file meant")


@contextlib.contextmanager
def _temporary_beside(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """A new file in the same folder (so that it can be moved into place); removed if it is still there at the end."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            yield temporary, file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _in_place_of(path: str) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends without an error."""
    with _temporary_beside(path) as (temporary, file):
        yield file
        _flush(file)
        os.replace(temporary, path)
        _flush_folder(path)


def _move_where_nothing_is(temporary: str, path: str) -> bool:
    """`os.link` for file systems without hard links: a rename, under a lock that every writer here takes.

    The lock is on the folder itself: the system takes it back from a process that is killed, and no file stays behind.
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
    """Makes the new name itself survive a power cut."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
