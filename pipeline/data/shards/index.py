"""A split's index: a file with one JSON object per line and sample.

A line holds a sample's key, label, shard, place in the tar, sha256 and place of its image. The index lies beside the
manifest, which holds its sha256. It allows reading a single sample (bytes of a local file, a range of an object),
checking it, and finding its image without parsing the tar. Labels and keys are known and checked before any shard is
read. The tars stay plain WebDataset tars.
"""

import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from pipeline.data.annotations.annotation import annotation_of
from pipeline.data.errors import DataError
from pipeline.data.shards.manifest import Manifest
from pipeline.storage import files

_SHA256 = re.compile("[0-9a-f]{64}")
_FIELDS: dict[str, type] = {
    "key": str,
    "label": object,  # the annotation checks it
    "shard": str,
    "offset": int,
    "length": int,
    "sha256": str,
    "image_offset": int,
    "image_length": int,
}


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """Where one sample is."""

    key: str
    """The sample's `__key__`."""
    label: Any
    """The sample's label, a JSON value of the manifest's annotation; for a class, its number."""
    shard: str
    """Name of the tar, which lies in the index's folder."""
    offset: int
    """First byte of the sample's first member's header in the tar."""
    length: int
    """Number of bytes up to the end of its last member, padding included: a multiple of the tar block of 512."""
    sha256: str
    """sha256 of those bytes, in hexadecimal."""
    image_offset: int
    """First byte of the image file itself in the tar, after its member's header."""
    image_length: int
    """Number of bytes of the image file."""

    def to_line(self) -> str:
        """The entry's line, without the newline."""
        return json.dumps(vars(self), ensure_ascii=False)


@dataclass(frozen=True)
class Index:
    """The N samples of a manifest, in its order."""

    entries: list[IndexEntry]
    shards: np.ndarray
    """int64 (N,): number of each sample's shard in the manifest."""
    labels: list[Any]
    """The label of each sample."""
    counts: list[int]
    """Number of samples in each index file of the manifest."""


def index_bytes(entries: Iterable[IndexEntry]) -> bytes:
    """The index file of these samples."""
    return "".join(f"{entry.to_line()}\n" for entry in entries).encode()


def load_index(manifest: Manifest) -> Index:
    """Reads the indexes that a manifest names (trainval's are train's and val's) and compares them with it.

    Raises:
        DataError: An index is missing or damaged, or does not match the manifest; it has every fault.
    """
    entries: list[IndexEntry] = []
    shards: list[int] = []
    numbers = {shard.name: number for number, shard in enumerate(manifest.shards)}
    counts: list[int] = []
    faults: list[str] = []
    for file in manifest.indexes:
        uri = files.join(manifest.uri, "..", file.name)
        try:
            data = files.read_bytes(uri)
        except FileNotFoundError:
            raise DataError(f"{uri}: no such index, though its manifest names it; write the shards again") from None
        found = sha256(data).hexdigest()
        if found != file.sha256:
            raise DataError(f"{uri}: its sha256 is {found}, its manifest says {file.sha256}; write the shards again")
        for entry in read_entries(data, uri):
            name = posixpath.join(posixpath.dirname(file.name), entry.shard)
            if name not in numbers:
                faults.append(f"{uri}: sample {entry.key!r} is in {name!r}, which the manifest does not list")
                continue
            entries.append(entry)
            shards.append(numbers[name])
        counts.append(len(entries) - sum(counts))
    shard_of_each = np.array(shards, dtype=np.int64)
    faults += _faults(manifest, entries, shard_of_each)
    if faults:
        raise DataError(f"{manifest.uri}: its index cannot be used; write the shards again", faults)
    return Index(entries, shard_of_each, [entry.label for entry in entries], counts)


def read_entries(data: bytes, uri: str) -> Iterator[IndexEntry]:
    """The entries in an index file's bytes. `uri` is used in errors."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{uri}:{number}: not a line of an index ({error})") from error
        kinds = {name: type(value) for name, value in values.items()} if isinstance(values, dict) else {}
        if {**kinds, "label": object} != _FIELDS or "label" not in kinds or not _SHA256.fullmatch(values["sha256"]):
            raise DataError(f"{uri}:{number}: expected {', '.join(_FIELDS)}, found {line[:200]!r}")
        yield IndexEntry(**values)


def _faults(manifest: Manifest, entries: list[IndexEntry], shards: np.ndarray) -> list[str]:
    """Differences between manifest and index, and samples that cannot be used for training."""
    faults = []
    if (np.diff(shards) < 0).any():
        faults.append("the samples are not in the order of the manifest's shards")
    counts = np.bincount(shards, minlength=len(manifest.shards))
    for shard, count in zip(manifest.shards, counts.tolist(), strict=True):
        if count != shard.num_samples:
            faults.append(f"{shard.name}: {count} samples in the index, {shard.num_samples} in the manifest")
    annotation = annotation_of(manifest.annotation)
    seen: dict[str, str] = {}
    ends: dict[int, int] = {}
    for entry, number in zip(entries, shards.tolist(), strict=True):
        shard = manifest.shards[number]
        where = f"{shard.name}: sample {entry.key!r}"
        if fault := annotation.fault(entry.label, manifest.class_names):
            faults.append(f"{where}: {fault}")
        if entry.key in seen:
            faults.append(f"{where}: stands in {seen[entry.key]} already")
        seen[entry.key] = shard.name
        if entry.length < 1 or not ends.get(number, 0) <= entry.offset <= shard.bytes - entry.length:
            faults.append(f"{where}: bytes {entry.offset} to {entry.offset + entry.length} are not its own in the tar")
        ends[number] = entry.offset + entry.length
        if entry.image_length < 1 or not entry.offset <= entry.image_offset <= ends[number] - entry.image_length:
            faults.append(f"{where}: its image's {entry.image_length} bytes from {entry.image_offset} on are not in it")
    return faults
