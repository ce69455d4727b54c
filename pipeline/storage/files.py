"""The same functions for local paths and s3:// addresses; http(s):// addresses can only be read.

Writes are atomic: local files are written to a temporary file beside their place, flushed and moved into it; S3
objects appear when their upload is complete. A remote read resumes where its connection broke (resuming.py). A
missing file raises FileNotFoundError everywhere; a refusal of a server raises StorageError. boto3 is imported when the
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
from pipeline.console.secrets import shown, shown_refused
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


def absolute(uri: str, *, reading: bool = False) -> str:
    """The full address: an absolute local path (~ expanded) or s3://bucket/key, without a slash at the end.

    Args:
        uri: A local path, file:///path or s3://bucket/key.
        reading: The address is only read, so http:// and https:// are allowed, too.

    Raises:
        StorageError: The address is empty or of another kind (gs://, pipe:, ...).
    """
    if _is_s3(uri):
        bucket, key = s3.split(uri)
        return s3.unsplit(bucket, key)
    if _is_http(uri):
        if not reading:
            raise StorageError(
                f"address {shown_refused(uri)!r}: expected a local path or s3://bucket/prefix; http files can be "
                "read, but not written or listed"
            )
        return http_read.checked(uri)
    path = uri.removeprefix("file://")
    if _SCHEME.match(path):  # s3a://, gs://, S3://: not meant as a local folder of that name
        raise StorageError(f"address {shown_refused(uri)!r}: expected a local path, file:///path or s3://bucket/prefix")
    scheme, colon, _ = path.partition(":")
    # An s3:// address becomes "s3:/bucket" when a caller normalises it as a path.
    is_scheme = bool(colon) and ((scheme.isalpha() and len(scheme) > 1) or scheme.lower() == "s3")
    if not path or "\0" in path or (is_scheme and not os.path.exists(path)):
        raise StorageError(f"address {shown_refused(uri)!r}: expected a local path or s3://bucket/prefix")
    return os.path.abspath(os.path.expanduser(path))


def join(uri: str, *parts: str) -> str:
    """The address of something below another address (or beside it, with ..); parts are relative.

    Raises:
        StorageError: A part is absolute or leads out of the bucket or server.
    """
    for part in parts:
        if posixpath.isabs(part) or "://" in part or "\0" in part:
            raise StorageError(f"{shown(part)!r} under {shown(uri)}: expected a relative path")
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
    """Size of a file or object in bytes; raises FileNotFoundError if it does not exist."""
    if is_remote(uri):
        return s3.size(uri) if _is_s3(uri) else http_read.size(uri)
    if not os.path.isfile(absolute(uri)):
        raise FileNotFoundError(f"no file {uri}")
    return os.path.getsize(absolute(uri))


def exists(uri: str) -> bool:
    """Whether a file or object exists at the address (a folder does not count)."""
    try:
        size(uri)
    except FileNotFoundError:
        return False
    return True


def open_read(uri: str) -> BinaryIO:
    """Opens a stream that is read once, in order; the caller closes it."""
    return _buffered(_open_remote(uri)) if is_remote(uri) else cast(BinaryIO, open(absolute(uri), "rb"))


def open_range(uri: str, start: int, length: int) -> BinaryIO:
    """Opens the bytes [start, start + length) as a stream that is read once, in order; the caller closes it.

    Raises:
        FileNotFoundError: The file does not exist.
        StorageError: The file ends before the range does (for a local file, raised while reading).
    """
    if start < 0 or length < 1:
        raise StorageError(f"{uri}: bytes {start} to {start + length}: expected at least one, and none before byte 0")
    if is_remote(uri):
        return _buffered(_open_remote(uri, start, length))
    return _buffered(FileRange(open(absolute(uri), "rb", buffering=0), start, length))


def content_sha256(uri: str) -> str:
    """sha256 of the whole content, which is read without being stored; FileNotFoundError if it does not exist."""
    with open(os.devnull, "wb") as nowhere:
        return download(uri, nowhere)


def read_bytes(uri: str) -> bytes:
    """The whole content."""
    with open_read(uri) as stream:
        return stream.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Replaces the content atomically: a reader sees either the old or the new content."""
    if _is_s3(uri):
        s3.put(uri, data)
        return
    with local_files.in_place_of(absolute(uri)) as file:
        file.write(data)


def put_once(uri: str, data: bytes) -> bool:
    """Writes only if nothing exists there; returns whether this call wrote. Of several simultaneous writers, one wins.

    On S3 this needs a server that supports If-None-Match, on disk a file system with hard links. Without them, two
    machines that write at the same instant may both believe that they won.
    """
    if _is_s3(uri):
        return s3.put_once(uri, data)
    return local_files.put_once(absolute(uri), data)


def excludes_others(uri: str) -> bool:
    """Whether `put_once` below a folder has only one winner even if two machines call it at the same instant.

    On S3 a temporary object is written to find out.
    """
    return s3.knows_if_none_match(uri) if _is_s3(uri) else True


def check_bucket(uri: str) -> None:
    """Raises FileNotFoundError if the address is on S3 and its bucket does not exist."""
    if _is_s3(uri):
        s3.check_bucket(uri)


def check_writable(uri: str) -> None:
    """Checks that files can be written below an address and leaves nothing there; on S3 it only checks the bucket.

    Raises:
        StorageError: Files cannot be written; the message gives the reason.
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
    """Removes one file or object, if it exists."""
    if _is_s3(uri):
        s3.delete(uri)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(absolute(uri))


def list_prefix(uri: str) -> list[str]:
    """Every file below a folder or prefix, as sorted relative paths with /; empty if the folder does not exist."""
    if _is_s3(uri):
        return s3.list_prefix(uri)
    root = absolute(uri)
    found = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sorted(Path(path).relative_to(root).as_posix() for path in found)


def fetch(uri: str, *, sha256: str | None = None) -> Path:
    """Returns a local file: a local path unchanged, a remote file as a copy in the cache.

    The copy stays as long as this process lives. For many files, one after the other, use `hold`.

    Args:
        uri: A local path, s3:// or http(s):// address.
        sha256: Expected sha256 of the content; a copy already in the cache is then used without a download.

    Raises:
        StorageError: The content has another sha256.
        CacheFullError: The cache has no room for the file.
        FileNotFoundError: The file does not exist.
    """
    if not is_remote(uri):
        return _local(uri, sha256)
    return cache.keep(_name(uri), sha256, functools.partial(_open_remote, uri))


@contextlib.contextmanager
def hold(uri: str, *, sha256: str | None = None) -> Iterator[Path]:
    """Like `fetch`, for a block: a copy in the cache may be evicted as soon as the block ends."""
    if not is_remote(uri):
        yield _local(uri, sha256)
        return
    with cache.hold(_name(uri), sha256, functools.partial(_open_remote, uri)) as path:
        yield path


def brief() -> contextlib.AbstractContextManager[None]:
    """Within the block, this thread tries each S3 request once and gives up after s3.BRIEF_TIMEOUT_S of silence."""
    return s3.brief()


def ray_filesystem(uri: str) -> tuple[Any, str]:
    """Ray Train's storage_filesystem and storage_path: pyarrow's S3 client, or None for the local disk."""
    return s3.ray_filesystem(uri) if _is_s3(uri) else (None, absolute(uri))


def download(uri: str, destination: BinaryIO) -> str:
    """Copies the content into an empty local file; returns its sha256."""
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
