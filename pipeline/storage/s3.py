"""Access to S3 through boto3. Callers use pipeline.storage.files."""

import contextlib
import contextvars
import functools
import os
import posixpath
import re
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.console.secrets import error_text, shown_refused
from pipeline.storage import resuming
from pipeline.storage.errors import PassingError, StorageError
from pipeline.storage.resuming import Answer, ResumingStream, beyond_end, is_passing, place_of, range_header, replaced

SCHEME = "s3://"
MAX_ATTEMPTS = 5
BRIEF_TIMEOUT_S = 5.0
_ENDPOINT = re.compile(r"https?://[^\s@?#]+")
"""Longest silence of a connection within `brief`."""
_is_brief = contextvars.ContextVar("is_brief", default=False)


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Within the block, this thread tries each request once, with a short timeout: for answers useless when late."""
    before = _is_brief.set(True)
    try:
        yield
    finally:
        _is_brief.reset(before)


def split(uri: str) -> tuple[str, str]:
    """s3://bucket/some/key -> bucket, some/key (no slash at either end).

    Raises:
        StorageError: There is no bucket, or there is a key and its secret, which the message does not repeat.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise StorageError(f"address {uri!r}: expected s3://bucket/prefix")
    if ":" in bucket or "@" in bucket:
        raise StorageError(
            "an s3:// address with : or @ in front of its path: expected s3://bucket/prefix; a key and its secret are "
            "given in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return bucket, key.strip("/")


def unsplit(bucket: str, key: str) -> str:
    """The inverse of split."""
    return f"{SCHEME}{bucket}/{key}" if key else f"{SCHEME}{bucket}"


def size(uri: str) -> int:
    """Size of an object in bytes."""
    bucket, key = split(uri)
    with _errors_of(uri):
        return int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])


def open_stream(uri: str, start: int = 0, length: int | None = None) -> ResumingStream:
    """The object's content, or a part of it, as a stream that can be read once and survives broken connections."""
    return ResumingStream(uri, functools.partial(_open_at, uri), start, length)


def put(uri: str, data: bytes) -> None:
    """Writes an object in one request."""
    bucket, key = split(uri)
    with _errors_of(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=data)


def put_once(uri: str, data: bytes) -> bool:
    """Writes an object unless it exists; returns whether it did."""
    # Some servers ignore If-None-Match, so look for the object first.
    with contextlib.suppress(FileNotFoundError):
        size(uri)
        return False
    return _put_if_none(uri, data)


def knows_if_none_match(uri: str) -> bool:
    """Whether the server supports If-None-Match: it refuses to overwrite an object that exists."""
    probe = unsplit(*split(f"{uri}/.probe-{secrets.token_hex(8)}"))
    try:
        _put_if_none(probe, b"first")
        return not _put_if_none(probe, b"second")
    finally:
        delete(probe)


def _put_if_none(uri: str, data: bytes) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = split(uri)
    with _errors_of(uri):
        try:
            _client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            # 412: the object exists. 409: another write of it is under way and wins.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                return False
            raise
    return True


def upload(stream: BinaryIO, uri: str) -> None:
    """Writes a stream of any length, in several parts if it is long."""
    bucket, key = split(uri)
    with _errors_of(uri):
        _client().upload_fileobj(stream, bucket, key)


def delete(uri: str) -> None:
    """Removes an object if it exists."""
    bucket, key = split(uri)
    with _errors_of(uri):
        _client().delete_object(Bucket=bucket, Key=key)


def list_prefix(uri: str) -> list[str]:
    """Every object below a prefix, as sorted relative paths."""
    bucket, key = split(uri)
    prefix = f"{key}/" if key else ""
    with _errors_of(uri):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return sorted(posixpath.relpath(found, prefix) if prefix else found for found in keys if not found.endswith("/"))


def check_bucket(uri: str) -> None:
    """Raises FileNotFoundError if the bucket does not exist; a bucket that this user may not query passes."""
    from botocore.exceptions import ClientError

    bucket, _ = split(uri)
    with _errors_of(unsplit(bucket, "")):
        try:
            _client().head_bucket(Bucket=bucket)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 404:  # an answer to HEAD has no body, so _errors_of could not read NoSuchBucket in it
                raise FileNotFoundError(f"no bucket {unsplit(bucket, '')}") from error
            if status != 403:
                raise


def ray_filesystem(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for the same store, and the path in it; pyarrow reads the credentials from AWS_* itself."""
    from pyarrow.fs import S3FileSystem

    bucket, key = split(uri)
    endpoint = _endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        filesystem = S3FileSystem(endpoint_override=host.rstrip("/"), scheme=scheme or "https", region=region)
    else:
        filesystem = S3FileSystem(region=region)
    return filesystem, f"{bucket}/{key}" if key else bucket


def _open_at(uri: str, position: int, stop: int | None, tag: str) -> Answer:
    """One request for an object's bytes; see resuming.OpenAt."""
    from botocore.exceptions import ClientError
    from urllib3.exceptions import HTTPError

    bucket, key = split(uri)
    asked = {"Range": range_header(position, stop), "IfMatch": tag}
    with _errors_of(uri), contextlib.ExitStack() as stack:
        try:
            # One attempt: the stream does the retries.
            answer = _client(attempts=1).get_object(
                Bucket=bucket, Key=key, **{name: value for name, value in asked.items() if value}
            )
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412:
                raise replaced(uri) from error
            if status == 416:
                raise beyond_end(uri, position, tag) from error
            raise
        # Entering boto3's body gives urllib3's, whose `read1` returns what has arrived when the connection breaks;
        # `read` of either body loses up to a whole buffer.
        body = stack.enter_context(answer["Body"])
        begin, size = place_of(uri, answer.get("ContentRange"), answer.get("ContentLength"))
        stack.pop_all()
    return Answer(body, begin, size, answer.get("ETag", ""), (HTTPError, OSError))


def _client(attempts: int = MAX_ATTEMPTS) -> Any:
    """This process's client. Clients must not cross a fork, and a changed environment may mean another store."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    if _is_brief.get():
        return _client_of(os.getpid(), settings, 1, BRIEF_TIMEOUT_S, BRIEF_TIMEOUT_S)
    return _client_of(os.getpid(), settings, attempts, resuming.CONNECT_TIMEOUT_S, resuming.READ_TIMEOUT_S)


@functools.cache
def _client_of(
    process: int, settings: tuple[tuple[str, str], ...], attempts: int, connect_timeout: float, read_timeout: float
) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # Servers other than Amazon's support neither the newer checksum headers nor bucket names in the host name.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if _endpoint() else "auto"},
    )
    return boto3.session.Session().client("s3", config=config)


def _endpoint() -> str:
    """Endpoint of a store other than Amazon's; empty for Amazon's.

    Raises:
        StorageError: It is no server's address, or it holds a login, which no request would use.
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(name):
            if not _ENDPOINT.fullmatch(endpoint):
                raise StorageError(
                    f"{name}={shown_refused(endpoint)}: expected http(s)://HOST:PORT, without a login; set "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
            return endpoint
    return ""


@contextlib.contextmanager
def _errors_of(uri: str) -> Iterator[None]:
    """Turns boto3's exceptions into FileNotFoundError and StorageError, with the address and a hint."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NoCredentialsError as error:
        raise StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "?")
        if status == 404:
            what = "bucket" if code == "NoSuchBucket" else "object"
            raise FileNotFoundError(f"no {what} {uri}") from error
        kind = PassingError if is_passing(status) else StorageError
        hint = "; are the credentials right, and may they do this?" if status in (401, 403) else ""
        raise kind(f"{uri}: {error.operation_name} answered {status} ({code}){hint}") from error
    except (HTTPClientError, ConnectionError, HTTPError) as error:
        raise PassingError(f"{uri}: {_endpoint() or 'the store'} could not be read ({error_text(error)})") from error
    except BotoCoreError as error:
        reason = " ".join(error_text(error).split())  # boto3's message on an invalid bucket name has several lines
        raise StorageError(f"{uri}: {_endpoint() or 'the store'} cannot be used ({reason})") from error
