"""Writes samples as WebDataset tars, several shards at a time, and makes their index entries.

The same samples give the same bytes, wherever and whenever they are written. Each written shard has a record beside it
until its split's manifest is written, so a killed write resumes where it was.
"""

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from webdataset import TarWriter

from pipeline.data.annotations.annotation import annotation_of
from pipeline.data.images import check_decodes, image_member
from pipeline.data.samples import SourceSample
from pipeline.data.shards.index import IndexEntry
from pipeline.data.shards.manifest import Shard
from pipeline.storage import files

BYTES_PER_SHARD = 128 << 20
MAX_THREADS = 8
"""Most threads; each builds one shard in memory."""
RECORDS = "parts"
"""Folder of the records of shards whose split has no manifest yet."""

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all), from any thread."""


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out because it cannot be used."""

    key: str
    reason: str


@dataclass(frozen=True)
class WrittenShard:
    """A shard that has been written."""

    shard: Shard | None
    """The shard; None if all of its samples were left out."""
    entries: list[IndexEntry]
    skipped: list[Skipped]


@dataclass(frozen=True)
class PlannedShard:
    """A shard to write."""

    folder: str
    """URI of the split's folder."""
    name: str
    samples: Sequence[SourceSample]
    annotation: str
    """What the samples are labelled with: a key of `pipeline.data.annotations.ANNOTATIONS`."""
    observed: str
    """Hash from `observe` over what can be seen of its samples without reading them."""


def plan_shards(
    samples: Sequence[SourceSample], *, folder: str, split: str, annotation: str, samples_per_shard: int
) -> list[PlannedShard]:
    """Cuts a split into shards, by the number and the size of its images."""
    chunks: list[list[SourceSample]] = []
    size = 0
    for sample in samples:
        full = chunks and (len(chunks[-1]) == samples_per_shard or size + sample.num_bytes > BYTES_PER_SHARD)
        if not chunks or full:
            chunks.append([])
            size = 0
        chunks[-1].append(sample)
        size += sample.num_bytes
    return [
        PlannedShard(folder, f"{split}-{number:06d}.tar", chunk, annotation, observe(chunk))
        for number, chunk in enumerate(chunks)
    ]


def observe(samples: Sequence[SourceSample]) -> str:
    """A hash of the samples' names and labels and their files' sizes and dates."""
    digest = hashlib.sha256(b"3")  # version of the bytes that are written for a sample
    seen: dict[str, tuple[int, int]] = {}
    for sample in samples:
        if sample.path not in seen:
            status = os.stat(sample.path)
            seen[sample.path] = (status.st_size, status.st_mtime_ns)
        digest.update(repr((sample, seen[sample.path])).encode())
    return digest.hexdigest()


def write_shards(
    planned: Sequence[PlannedShard], *, threads: int, progress: Progress | None = None
) -> Iterator[WrittenShard]:
    """Writes shards that are not written already; yields all in order.

    Args:
        planned: Returned by `plan_shards`, for one split or several.
        threads: Number of shards written at a time.
        progress: Called after every sample.
    """
    total, lock, done = sum(len(shard.samples) for shard in planned), Lock(), 0

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    def work(shard: PlannedShard) -> WrittenShard:
        if (found := _recorded(shard)) is not None:
            advance(len(shard.samples))
            return found
        return _write(shard, advance)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="write-shard")
    try:
        yield from pool.map(work, planned)
    finally:
        pool.shutdown(cancel_futures=True)


def delete_records(folder: str) -> None:
    """Removes the records of a split's shards, which its manifest replaces."""
    for name in files.list_prefix(files.join(folder, RECORDS)):
        files.delete(files.join(folder, RECORDS, name))


def _write(planned: PlannedShard, advance: Callable[[int], None]) -> WrittenShard:
    file, annotation = io.BytesIO(), annotation_of(planned.annotation)
    entries: list[IndexEntry] = []
    images: list[str] = []
    skipped: list[Skipped] = []
    # mtime is an int: for a float, even .0, tarfile adds another header, which doubles what is read and written.
    # webdataset gives tarfile its own buffer, so only tarfile knows its position in the tar.
    with TarWriter(file, mtime=0) as writer:
        for sample in planned.samples:
            try:
                data = sample.read()
                member = image_member(data)
                check_decodes(data)
            except ValueError as error:
                skipped.append(Skipped(sample.key, f"{sample.path}: {error}"))
            else:
                offset = writer.tarstream.offset
                label = annotation.members(sample.label)
                assert member not in label, f"{planned.annotation}: its member {member} would replace the image"
                writer.write({"__key__": sample.key, member: data, **label})
                length = writer.tarstream.offset - offset
                entry = IndexEntry(
                    key=sample.key,
                    label=sample.label,
                    shard=planned.name,
                    offset=offset,
                    length=length,
                    sha256="",
                    image_offset=0,
                    image_length=len(data),
                )
                entries.append(entry)
                images.append(f"{sample.key}.{member}")
            advance(1)
    tar = file.getvalue()
    entries = [_found_in(tar, entry, image) for entry, image in zip(entries, images, strict=True)]
    shard = None
    if entries:
        shard = Shard(
            name=planned.name, bytes=len(tar), sha256=hashlib.sha256(tar).hexdigest(), num_samples=len(entries)
        )
        files.delete(_record_uri(planned))  # it may describe an older tar of this name
        files.write_bytes(files.join(planned.folder, planned.name), tar)
    written = WrittenShard(shard, entries, skipped)
    record = {"observed": planned.observed, **dataclasses.asdict(written)}
    files.write_bytes(_record_uri(planned), json.dumps(record).encode())
    return written


def _found_in(tar: bytes, entry: IndexEntry, image: str) -> IndexEntry:
    """The entry, completed with its sample's sha256 and the place of its image."""
    own = tar[entry.offset : entry.offset + entry.length]
    with tarfile.open(fileobj=io.BytesIO(own), mode="r:") as sample:
        image_offset = entry.offset + sample.getmember(image).offset_data
    return dataclasses.replace(entry, sha256=hashlib.sha256(own).hexdigest(), image_offset=image_offset)


def _record_uri(planned: PlannedShard) -> str:
    return files.join(planned.folder, RECORDS, f"{planned.name}.json")


def _recorded(planned: PlannedShard) -> WrittenShard | None:
    """The shard that an earlier write left, if its samples are the same and the tar is in place."""
    try:
        record: dict[str, Any] = json.loads(files.read_bytes(_record_uri(planned)))
    except FileNotFoundError:
        return None
    if record["observed"] != planned.observed:
        return None
    shard = None if record["shard"] is None else Shard(**record["shard"])
    tar = files.join(planned.folder, planned.name)
    if shard is not None and not (files.exists(tar) and files.size(tar) == shard.bytes):
        return None
    return WrittenShard(
        shard, [IndexEntry(**e) for e in record["entries"]], [Skipped(**skip) for skip in record["skipped"]]
    )
