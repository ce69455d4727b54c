"""Reads the bytes and labels of given samples from the shards, and checks each against the index.

Only the wanted samples are read, in runs of neighbours: bytes of a local file, or a range of an object. Several runs of
objects are fetched at a time, ahead of the caller. A tar that was cut at a member's end or whose payload has changed
reads without an error, so every sample must have the index's sha256. The index also says where the image is; parsing
tar headers instead took a fifth of the time of decoding. webdataset's openers are not used: nothing here can run a
`pipe:`, and no member is unpickled or written to disk.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.data.errors import DataError
from pipeline.data.shards.index import Index, IndexEntry
from pipeline.data.shards.manifest import Manifest, Shard
from pipeline.storage import files

RUN_BYTES = 4 << 20
"""Approximate largest size of a run, which is read at once."""
GAP_BYTES = 64 << 10
"""Largest gap between wanted samples of an object that is read along with them, to save a request."""
RUNS_AHEAD = 8
"""Most runs of objects that are in memory or being fetched."""
SHARDS_AHEAD = 2
"""Number of objects that are copied into the cache while another is read from there."""


@dataclass(frozen=True)
class EncodedSample:
    """One sample of a shard."""

    key: str
    image: bytes
    """Bytes of the image file."""
    label: Any
    """The sample's label, from the index."""
    shard: str
    """URI of the shard, for errors."""


@dataclass(frozen=True)
class _Run:
    """Neighbouring samples of one shard that are read at once."""

    uri: str
    shard: Shard
    entries: list[IndexEntry]

    @property
    def start(self) -> int:
        return self.entries[0].offset

    @property
    def length(self) -> int:
        return self.entries[-1].offset + self.entries[-1].length - self.start


class ShardReader:
    """Reads samples of one manifest.

    Args:
        manifest: The manifest of a split.
        index: The manifest's index.
        cached: Read objects from whole copies in the local cache, checked against the manifest, instead of by ranges.
            This suits splits that are read many times and do not fit in memory.
    """

    def __init__(self, manifest: Manifest, index: Index, *, cached: bool = False) -> None:
        self.manifest = manifest
        self.index = index
        self._remote = files.is_remote(manifest.uri)
        self._cached = cached

    def read(self, numbers: Sequence[int]) -> Iterator[EncodedSample]:
        """Yields the samples with these numbers (places in the index), in this order.

        Neighbours that come one after the other are read together.

        Raises:
            DataError: A shard is missing, or a sample differs from the index.
        """
        runs = self._runs(numbers)
        chunks: Iterator[tuple[_Run, bytes | bytearray]]
        if not self._remote:
            chunks = ((run, _file_bytes(run.uri, run)) for run in runs)
        elif self._cached:
            chunks = _cached(runs)
        else:
            chunks = _fetched_ahead(runs)
        for run, data in chunks:
            try:
                yield from samples_of(run.uri, run.entries, data)
            except DataError as error:
                advice = "`jobs/write_shards.py --verify` finds all that is, and says how to mend it"
                raise DataError(f"{error} ({advice})") from error

    def _runs(self, numbers: Sequence[int]) -> Iterator[_Run]:
        gap = GAP_BYTES if self._remote and not self._cached else 0
        run: _Run | None = None
        for number in numbers:
            entry, shard = self.index.entries[number], self.manifest.shards[int(self.index.shards[number])]
            if run is not None:
                end = run.start + run.length
                near = run.shard is shard and end <= entry.offset <= end + gap
                if near and entry.offset + entry.length - run.start <= RUN_BYTES:
                    run.entries.append(entry)
                    continue
                yield run
            run = _Run(self.manifest.shard_uri(shard), shard, [entry])
        if run is not None:
            yield run


def _file_bytes(path: str, run: _Run) -> bytes:
    """Reads a run from a local file: the shard, or its copy."""
    try:
        with open(path, "rb") as file:
            _check_size(run, os.fstat(file.fileno()).st_size)
            file.seek(run.start)
            return file.read(run.length)
    except FileNotFoundError:
        raise _missing(run) from None


def _fetched_ahead(runs: Iterator[_Run]) -> Iterator[tuple[_Run, bytearray]]:
    """Fetches runs of objects in order, several ahead of the caller."""
    checked: set[str] = set()
    pool = ThreadPoolExecutor(RUNS_AHEAD, thread_name_prefix="fetch")
    pending: deque[tuple[_Run, Future[bytearray]]] = deque()
    try:
        for run in runs:
            pending.append((run, pool.submit(_object_bytes, run, checked)))
            if len(pending) == RUNS_AHEAD:
                first, data = pending.popleft()
                yield first, data.result()
        while pending:
            first, data = pending.popleft()
            yield first, data.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _object_bytes(run: _Run, checked: set[str]) -> bytearray:
    try:
        if run.uri not in checked:
            # If the object was cut off, a retry would not help: the connection is not to blame.
            _check_size(run, files.size(run.uri))
            checked.add(run.uri)
        data = bytearray(run.length)  # read in place: joining pieces would need the memory twice
        with files.open_range(run.uri, run.start, run.length) as stream:
            filled = stream.readinto(data)  # type: ignore[attr-defined]
        assert filled == run.length, f"{run.uri}: {filled} of {run.length} bytes"  # a cut-off object raised above
        return data
    except FileNotFoundError:
        raise _missing(run) from None


def _cached(runs: Iterator[_Run]) -> Iterator[tuple[_Run, bytes]]:
    """Reads runs from copies in the cache, which are held meanwhile. The next shards are copied at the same time."""
    of_shards = [list(group) for _, group in groupby(runs, key=lambda run: run.uri)]
    holds = [ExitStack() for _ in of_shards]
    pool = ThreadPoolExecutor(SHARDS_AHEAD, thread_name_prefix="cache")
    copies: list[Future[Path]] = []
    try:
        for turn, group in enumerate(of_shards):
            while len(copies) < min(len(of_shards), turn + 1 + SHARDS_AHEAD):
                copies.append(pool.submit(_hold, of_shards[len(copies)][0], holds[len(copies)]))
            path = str(copies[turn].result())
            for run in group:
                yield run, _file_bytes(path, run)
            holds[turn].close()
    finally:
        pool.shutdown(cancel_futures=True)
        for hold in holds:
            hold.close()


def _hold(run: _Run, until: ExitStack) -> Path:
    try:
        return until.enter_context(files.hold(run.uri, sha256=run.shard.sha256))
    except FileNotFoundError:
        raise _missing(run) from None


def _missing(run: _Run) -> DataError:
    return DataError(f"{run.uri}: no such shard, though its manifest lists it; write the shards again")


def _check_size(run: _Run, size: int) -> None:
    if size != run.shard.bytes:
        raise DataError(f"{run.uri}: has {size} bytes, its manifest says {run.shard.bytes}; it was cut off or replaced")


def samples_of(uri: str, entries: Sequence[IndexEntry], data: bytes | bytearray) -> Iterator[EncodedSample]:
    """The samples of neighbouring entries, from a tar's bytes that begin with the first one; gaps are skipped.

    Raises:
        DataError: A sample's bytes do not have the index's sha256.
    """
    whole, start = memoryview(data), entries[0].offset
    for entry in entries:
        own = whole[entry.offset - start : entry.offset - start + entry.length]
        found = hashlib.sha256(own).hexdigest()
        if found != entry.sha256:
            raise DataError(
                f"{uri}: sample {entry.key!r}: its {len(own)} bytes have the sha256 {found[:16]}..., its index says "
                f"{entry.length} bytes and {entry.sha256[:16]}...: the shard is damaged or replaced"
            )
        first = entry.image_offset - entry.offset
        yield EncodedSample(entry.key, bytes(own[first : first + entry.image_length]), entry.label, uri)
