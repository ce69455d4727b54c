"""One shard -> its samples as they were written, undecoded; through webdataset's tar iteration and grouping.

A shard is compared with its manifest before its first sample is given out, since a tar that was cut at a member's end
or has changed payload bytes reads without any complaint. webdataset's own openers are not used: nothing here can run
a `pipe:`, and no member is unpickled or written to disk.
"""

import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO, cast

from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline import storage
from pipeline.data.errors import DataError
from pipeline.data.manifest import Manifest, Shard

IMAGE_MEMBERS = ("png", "jpg", "jpeg", "webp")
_LABEL = re.compile(rb"[0-9]{1,9}")
# A remote shard up to this size is kept in memory while it is read, a longer one on disk.
_SPOOL_BYTES = 256 << 20


@dataclass(frozen=True)
class EncodedSample:
    """One sample of a shard."""

    key: str
    image: bytes
    """The file's bytes."""
    label: int
    """A valid index into the class names."""
    shard: str
    """Where it was read, for errors."""


class ShardReader:
    """Reads the shards of one manifest; remembers which local ones it has hashed."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._hashed: dict[str, tuple[int, int, int]] = {}

    def read(self, shard: Shard) -> Iterator[EncodedSample]:
        """Gives exactly the samples that the manifest says, in the order of the file.

        Raises:
            DataError: the shard is not the one in the manifest, or a sample in it cannot be used.
        """
        uri = self.manifest.shard_uri(shard)
        count = 0
        with self._open_checked(uri, shard) as stream:
            for sample in _samples(stream, uri):
                count += 1
                if count > shard.num_samples:
                    raise DataError(f"{uri}: holds more samples than the {shard.num_samples} that its manifest says")
                yield _checked_sample(sample, uri, len(self.manifest.class_names))
        if count < shard.num_samples:
            raise DataError(f"{uri}: holds {count} samples, its manifest says {shard.num_samples}")

    def _open_checked(self, uri: str, shard: Shard) -> BinaryIO:
        try:
            if storage.is_remote(uri):
                return _download_checked(uri, shard)
            stream = storage.open_read(uri)
        except FileNotFoundError:
            raise DataError(f"{uri}: no such shard, though its manifest lists it; write the shards again") from None
        # Hashed again only if the file is another one than when it was hashed.
        status = os.fstat(stream.fileno())
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._hashed.get(uri) != seen:
            try:
                _check(
                    uri, shard, status.st_size, hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()
                )
            except BaseException:
                stream.close()
                raise
            stream.seek(0)
            self._hashed[uri] = seen
        return stream


def _download_checked(uri: str, shard: Shard) -> BinaryIO:
    spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))  # noqa: SIM115 - the caller closes it
    try:
        sha256 = storage.download(uri, spool)
        _check(uri, shard, spool.tell(), sha256)
    except BaseException:
        spool.close()
        raise
    spool.seek(0)
    return spool


def _check(uri: str, shard: Shard, size: int, sha256: str) -> None:
    if size != shard.bytes:
        raise DataError(f"{uri}: has {size} bytes, its manifest says {shard.bytes}; it was cut off or replaced")
    if sha256 != shard.sha256:
        raise DataError(f"{uri}: its sha256 is {sha256}, its manifest says {shard.sha256}; it is damaged or replaced")


def _samples(stream: BinaryIO, uri: str) -> Iterator[dict[str, object]]:
    """webdataset's samples of one open tar."""
    try:
        files = tar_file_expander([{"url": uri, "stream": stream}])
        yield from group_by_keys(files)
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise DataError(f"{uri}: not a readable WebDataset tar ({error.args[0] if error.args else error})") from error


def _checked_sample(sample: dict[str, object], uri: str, num_classes: int) -> EncodedSample:
    key = str(sample["__key__"])
    where = f"{uri}: sample {key!r}"
    images = [name for name in IMAGE_MEMBERS if name in sample]
    if len(images) != 1:
        raise DataError(f"{where}: has {len(images)} images, expected one of {', '.join(IMAGE_MEMBERS)}")
    label = sample.get("cls")
    if not isinstance(label, bytes) or not _LABEL.fullmatch(label.strip()):
        raise DataError(f"{where}: its label (cls) is {label!r}, expected a whole number")
    if int(label) >= num_classes:
        raise DataError(f"{where}: label {int(label)} is out of range; {num_classes} classes: 0 to {num_classes - 1}")
    return EncodedSample(key, cast(bytes, sample[images[0]]), int(label), uri)
