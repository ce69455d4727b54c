"""The part of storage that speaks to S3, through boto3. Callers use pipeline.storage."""

import contextlib
import functools
import io
import os
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO

SCHEME = "s3://"
MAX_ATTEMPTS = 5


class StorageError(ValueError):
    """An address that cannot be used, or a store that refused; says which and what to do."""


class BrokenTransferError(StorageError):
    """An object's body that ended or broke off before its end; another attempt may well get it whole."""


def split(uri: str) -> tuple[str, str]:
    """s3://bucket/some/key -> bucket, some/key (no slash at either end)."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise StorageError(f"address {uri!r}: expected s3://bucket/prefix")
    return bucket, key.strip("/")


def unsplit(bucket: str, key: str) -> str:
    """The inverse of split."""
    return f"{SCHEME}{bucket}/{key}" if key else f"{SCHEME}{bucket}"


def size(uri: str) -> int:
    """Bytes of an object."""
    bucket, key = split(uri)
    with _errors_of(uri):
        return int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])


def open_read(uri: str) -> BinaryIO:
    """The object's content as a stream that can be read once; a body cut short is an error, not an end."""
    bucket, key = split(uri)
    with _errors_of(uri):
        answer = _client().get_object(Bucket=bucket, Key=key)
    return io.BufferedReader(Body(uri, answer["Body"], int(answer["ContentLength"])), 1 << 20)


def put(uri: str, data: bytes) -> None:
    """Writes an object whole."""
    bucket, key = split(uri)
    with _errors_of(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=data)


def put_once(uri: str, data: bytes) -> bool:
    """Writes an object where there is none; returns whether it did."""
    from botocore.exceptions import ClientError

    # Some servers ignore If-None-Match, so the object is looked for first as well.
    with contextlib.suppress(FileNotFoundError):
        size(uri)
        return False
    bucket, key = split(uri)
    with _errors_of(uri):
        try:
            _client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            # 412: it is there already. 409: another write of it is under way, which is then the first.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                return False
            raise
    return True


def upload(stream: BinaryIO, uri: str) -> None:
    """Writes a stream of any length, in parts where it is long."""
    bucket, key = split(uri)
    with _errors_of(uri):
        _client().upload_fileobj(stream, bucket, key)


def delete(uri: str) -> None:
    """Removes an object if it is there."""
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


def ray_filesystem(uri: str) -> tuple[Any, str]:
    """pyarrow's filesystem for the same store (it reads the credentials from AWS_* itself), and the path in it."""
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


class Body(io.RawIOBase):
    """An object's body as a raw stream that counts its bytes."""

    def __init__(self, uri: str, body: Any, length: int) -> None:
        self._uri, self._body, self._left = uri, body, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        try:
            data = self._body.read(min(len(buffer), self._left)) if self._left else b""
        except (BotoCoreError, HTTPError, OSError) as error:
            raise BrokenTransferError(
                f"{self._uri}: the connection broke off {self._left} bytes before the object's end ({error})"
            ) from error
        if not data and self._left:
            raise BrokenTransferError(f"{self._uri}: the connection ended {self._left} bytes before the object did")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


def _client() -> Any:
    """This process's client: clients do not cross a fork, and a changed environment means another store."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _client_of(os.getpid(), settings)


@functools.cache
def _client_of(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        # Other servers than Amazon's know neither the newer checksum headers nor bucket names in the host name.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if _endpoint() else "auto"},
    )
    return boto3.session.Session().client("s3", config=config)


def _endpoint() -> str:
    """The address of a store other than Amazon's; empty for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@contextlib.contextmanager
def _errors_of(uri: str) -> Iterator[None]:
    """Turns boto3's many exceptions into FileNotFoundError and StorageError with the address and what to look at."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NoCredentialsError as error:
        raise StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = error.response.get("Error", {}).get("Code", "?")
        if status == 404:
            what = "bucket" if code == "NoSuchBucket" else "object"
            raise FileNotFoundError(f"no {what} {uri}") from error
        hint = "; are the credentials right, and may they do this?" if status in (401, 403) else ""
        raise StorageError(f"{uri}: {error.operation_name} answered {status} ({code}){hint}") from error
    except (BotoCoreError, HTTPClientError, HTTPError) as error:
        raise StorageError(f"{uri}: {_endpoint() or 'the store'} could not be read ({error})") from error
