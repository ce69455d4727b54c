"""Local paths and s3:// addresses behind the same few functions; http(s):// addresses, for reading alone.

A write is seen whole or not at all: local files are written beside their place, flushed and moved into it; S3
objects appear when their upload is complete. A remote read goes on where its connection broke off (resuming.py).
Missing files are FileNotFoundError in every world; what a server refuses is a StorageError. boto3 is imported when the
first s3:// address is used, and finds endpoint and credentials in the standard AWS_* variables.
"""

import contextlib
import functools
import io
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from hst.checkpoint_header import file_sha256 as file_sha256
from pipeline.storage import cache, http_read, local_files, s3
from pipeline.storage.cache import CHUNK_BYTES
from pipeline.storage.errors import CacheFullError as CacheFullError
from pipeline.storage.errors import StorageError as StorageError
from pipeline.storage.file_range import FileRange
from pipeline.storage.resuming import ResumingStream

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(uri: str) -> bool:
    """Whether the address is s3:// or http(s):// rather than a local path."""
    return _is_s3(uri) or _is_http(uri)


def shown(uri: str) -> str:
    """The address as it may be printed: what follows ? in one of http is often a signature that opens the file."""
    return http_read.shown(uri) if _is_http(uri) else uri


def absolute(uri: str, *, reading: bool = False) -> str:
    """The address in full: an absolute local path (~ expanded) or s3://bucket/key, without a slash at the end.

    Args:
        uri: A local path, file:///path or s3://bucket/key.
        reading: Nothing is going to be written there, so that http:// and https:// will do as well.

    Raises:
        StorageError: it is empty or of another kind (gs://, pipe:, ...).
    """
    if _is_s3(uri):
        bucket, key = s3.split(uri)
        return s3.unsplit(bucket, key)
    if _is_http(uri):
        if not reading:
            raise StorageError(
                f"address {http_read.shown(uri)!r}: expected a local path or s3://bucket/prefix; from http a file can "
                "be read, nothing written or listed"
            )
        return http_read.checked(uri)
    path = uri.removeprefix("file://")
    if _SCHEME.match(path):  # s3a://, gs://, S3://: never a local folder of that name
        raise StorageError(f"address {uri!r}: expected a local path, file:///path or s3://bucket/prefix")
    scheme, colon, _ = path.partition(":")
    # "s3:/bucket" is what becomes of an address that was taken for a path on its way here.
    is_scheme = bool(colon) and ((scheme.isalpha() and len(scheme) > 1) or scheme.lower() == "s3")
    if not path or "\0" in path or (is_scheme and not os.path.exists(path)):
        raise StorageError(f"address {uri!r}: expected a local path or s3://bucket/prefix")
    return os.path.abspath(os.path.expanduser(path))


def join(uri: str, *parts: str) -> str:
    """The address of something below (or, with .., beside) another; parts are relative.

    Raises:
        StorageError: a part is absolute or leads out of the bucket or server.
    """
    for part in parts:
        if posixpath.isabs(part) or "://" in part or "\0" in part:
            raise StorageError(f"{part!r} under {uri}: expected a relative path")
    if _is_http(uri):
        return http_read.join(uri, *parts)
    if not _is_s3(uri):
        return os.path.normpath(os.path.join(absolute(uri), *parts))
    bucket, key = s3.split(uri)
    joined = posixpath.normpath(posixpath.join(key, *parts))
    if joined == ".." or joined.startswith("../"):
        raise StorageError(f"{'/'.join(parts)!r} under {uri}: leads out of the bucket")
    return s3.unsplit(bucket, "" if joined == "." else joined)


def size(uri: str) -> int:
    """Bytes of a file or object; FileNotFoundError if there is none."""
    if is_remote(uri):
        return s3.size(uri) if _is_s3(uri) else http_read.size(uri)
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
    return _buffered(_open_remote(uri)) if is_remote(uri) else cast(BinaryIO, open(absolute(uri), "rb"))


def open_range(uri: str, start: int, length: int) -> BinaryIO:
    """Opens the bytes [start, start + length) for reading once, front to back; the caller closes it.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it ends before that (for a local file, that is seen when it is read).
    """
    if start < 0 or length < 1:
        raise StorageError(f"{uri}: bytes {start} to {start + length}: expected at least one, and none before byte 0")
    if is_remote(uri):
        return _buffered(_open_remote(uri, start, length))
    return _buffered(FileRange(open(absolute(uri), "rb", buffering=0), start, length))


def content_sha256(uri: str) -> str:
    """sha256 of the whole content, which is read once and kept nowhere; FileNotFoundError if there is none."""
    with open(os.devnull, "wb") as nowhere:
        return download(uri, nowhere)


def read_bytes(uri: str) -> bytes:
    """The whole content."""
    with open_read(uri) as stream:
        return stream.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Replaces the content at once: a reader sees the old or the new, whole."""
    if _is_s3(uri):
        s3.put(uri, data)
        return
    with local_files.in_place_of(absolute(uri)) as file:
        file.write(data)


def put_once(uri: str, data: bytes) -> bool:
    """Writes only where nothing is yet; returns whether this call wrote. Of several writers at once one wins.

    On S3 that holds where the server knows If-None-Match, on disk where there are hard links; elsewhere two writers in
    the same instant, on two machines, may both think so.
    """
    if _is_s3(uri):
        return s3.put_once(uri, data)
    return local_files.put_once(absolute(uri), data)


def excludes_others(uri: str) -> bool:
    """Whether, of two machines that `put_once` below a folder in the same instant, only one can think that it wrote.

    On S3 that is tried with an object of its own, which is gone afterwards.
    """
    return s3.knows_if_none_match(uri) if _is_s3(uri) else True


def check_bucket(uri: str) -> None:
    """Raises FileNotFoundError if the address is on S3, in a bucket that there is not."""
    if _is_s3(uri):
        s3.check_bucket(uri)


def check_writable(uri: str) -> None:
    """Finds out whether files can be written below an address, and leaves nothing there; S3 is asked for the bucket.

    Raises:
        StorageError: they cannot, with the reason.
    """
    if _is_s3(uri):
        try:
            s3.check_bucket(uri)
        except FileNotFoundError as error:
            raise StorageError(str(error)) from error
    else:
        local_files.check_writable(absolute(uri))


def copy(source: str, destination: str) -> None:
    """Copies one file or object between any two places."""
    with open_read(source) as stream:
        if _is_s3(destination):
            s3.upload(stream, destination)
            return
        with local_files.in_place_of(absolute(destination)) as file:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)


def delete(uri: str) -> None:
    """Removes one file or object; nothing happens where there is none."""
    if _is_s3(uri):
        s3.delete(uri)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(absolute(uri))


def list_prefix(uri: str) -> list[str]:
    """Every file below a folder or prefix, as sorted relative paths with /; none where there is no such folder."""
    if _is_s3(uri):
        return s3.list_prefix(uri)
    root = absolute(uri)
    found = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sorted(Path(path).relative_to(root).as_posix() for path in found)


def fetch(uri: str, *, sha256: str | None = None) -> Path:
    """The address as a local file: a local path as it is, a remote one copied into the cache under its sha256.

    The copy stays as long as this process lives; for many files, one after the other, `hold` is meant.

    Args:
        uri: A local path, s3:// or http(s):// address.
        sha256: What the content must be; a copy that is already in the cache is then used without a download.

    Raises:
        StorageError: the content is not what sha256 says.
        CacheFullError: the cache has no room for it.
        FileNotFoundError: there is no such file.
    """
    if not is_remote(uri):
        return _local(uri, sha256)
    return cache.keep(_name(uri), sha256, functools.partial(_open_remote, uri))


@contextlib.contextmanager
def hold(uri: str, *, sha256: str | None = None) -> Iterator[Path]:
    """As `fetch`, for a block: a copy in the cache is not evicted before the block ends, but may be then."""
    if not is_remote(uri):
        yield _local(uri, sha256)
        return
    with cache.hold(_name(uri), sha256, functools.partial(_open_remote, uri)) as path:
        yield path


def brief() -> contextlib.AbstractContextManager[None]:
    """Within, this thread's requests to S3 are made once and given up after s3.BRIEF_TIMEOUT_S of silence."""
    return s3.brief()


def ray_filesystem(uri: str) -> tuple[Any, str]:
    """Ray Train's storage_filesystem and storage_path: pyarrow's S3 at our endpoint, or None for the local disk."""
    return s3.ray_filesystem(uri) if _is_s3(uri) else (None, absolute(uri))


def download(uri: str, destination: BinaryIO) -> str:
    """Copies into an empty local file; returns the sha256."""
    with open_read(uri) as stream:
        return cache.copy_hashed(stream, destination)


def _is_s3(uri: str) -> bool:
    return uri.startswith(s3.SCHEME)


def _is_http(uri: str) -> bool:
    return uri.startswith(http_read.SCHEMES)


def _open_remote(uri: str, start: int = 0, length: int | None = None) -> ResumingStream:
    return (s3 if _is_s3(uri) else http_read).open_stream(uri, start, length)


def _buffered(stream: io.RawIOBase) -> BinaryIO:
    return io.BufferedReader(stream, CHUNK_BYTES)


def _name(uri: str) -> str:
    return posixpath.basename(uri) if _is_s3(uri) else http_read.basename(uri)


def _local(uri: str, sha256: str | None) -> Path:
    path = Path(absolute(uri))
    if not path.is_file():
        raise FileNotFoundError(f"no file {uri}")
    if sha256 is not None:
        cache.check_sha256(uri, file_sha256(path), sha256)
    return path
