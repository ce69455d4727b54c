"""Samples at given positions of an order -> read from their shards and decoded, in that order.

Threads serve by default: PIL lets go of the interpreter's lock while it decodes and resizes. Worker processes are for
machines where the rest of Python is what holds back.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.data.errors import DataError
from pipeline.data.order import EpochOrder
from pipeline.data.shard_reader import EncodedSample, ShardReader

MAX_THREADS = 16
_AHEAD_PER_THREAD = 16
# Samples that a worker process decodes and hands over together.
_CHUNK_SIZE = 32
_Chunk = tuple[torch.Tensor, torch.Tensor]

Decode = Callable[[bytes, int], torch.Tensor]
"""(an image file's bytes, its position in the order) -> uint8 (3, S, S); ValueError where it is no image."""


@dataclass(frozen=True)
class DecodedSample:
    """One sample, ready for a batch."""

    position: int
    """In the order."""
    pixels: torch.Tensor
    """uint8 (3, S, S)."""


def decoded_samples(
    reader: ShardReader, decode: Decode, order: EpochOrder, positions: np.ndarray, *, workers: int = 0
) -> Generator[DecodedSample, None, None]:
    """Gives exactly the samples at `positions`, int64 (n,) ascending, in that order.

    Raises:
        DataError: a shard or a sample cannot be used, or another number came than was asked for.
    """
    if len(positions) == 0:
        return
    if workers:
        found = _from_processes(reader, decode, order, positions, workers)
    else:
        found = _decoded_ahead(_encoded_samples(reader, order, positions), decode)
    count = 0
    for sample in found:
        if count == len(positions) or sample.position != positions[count]:
            raise DataError(f"{reader.manifest.uri}: position {sample.position} of the order came out of turn")
        count += 1
        yield sample
    if count != len(positions):
        raise DataError(f"{reader.manifest.uri}: {count} samples came, {len(positions)} were asked for")


def _encoded_samples(
    reader: ShardReader, order: EpochOrder, positions: np.ndarray
) -> Iterator[tuple[int, EncodedSample]]:
    """Reads in the order of the shards, so that neighbours are read together; holds what comes before its turn."""
    by_place = np.argsort(order.places[positions])
    numbers = order.samples[positions][by_place]
    held: dict[int, EncodedSample] = {}
    turn = 0
    for i, sample in zip(by_place.tolist(), reader.read(numbers.tolist()), strict=True):
        held[i] = sample
        while turn in held:
            yield int(positions[turn]), held.pop(turn)
            turn += 1


def _decoded_ahead(encoded: Iterator[tuple[int, EncodedSample]], decode: Decode) -> Iterator[DecodedSample]:
    """Decodes in threads, some samples ahead of what is taken, while the caller works on the last batch."""
    threads = min(
        MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[DecodedSample]] = deque()
    try:
        for position, sample in encoded:
            pending.append(pool.submit(_decode, position, sample, decode))
            if len(pending) > threads * _AHEAD_PER_THREAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(position: int, sample: EncodedSample, decode: Decode) -> DecodedSample:
    try:
        return DecodedSample(position, decode(sample.image, position))
    except ValueError as error:
        raise DataError(f"{sample.shard}: sample {sample.key!r}: {error}") from error


def _from_processes(
    reader: ShardReader, decode: Decode, order: EpochOrder, positions: np.ndarray, workers: int
) -> Iterator[DecodedSample]:
    chunks = DataLoader(
        _Chunks(reader, decode, order, positions),
        batch_size=None,
        num_workers=workers,
        # DataLoader draws a seed for its workers, which nobody uses, and would take it from the global generator.
        generator=torch.Generator(),
    )
    for chunk in chunks:
        if isinstance(chunk, DataError):
            raise chunk
        for position, pixels in zip(*chunk, strict=True):
            yield DecodedSample(int(position), pixels)


class _Chunks(IterableDataset[_Chunk | DataError]):
    """The positions in chunks, dealt out to the worker processes in turn, as DataLoader takes from them."""

    def __init__(self, reader: ShardReader, decode: Decode, order: EpochOrder, positions: np.ndarray) -> None:
        self._of_all_workers = (reader, decode, order, positions)

    def __iter__(self) -> Iterator[_Chunk | DataError]:
        reader, decode, order, positions = self._of_all_workers
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        own = positions[np.arange(len(positions)) // _CHUNK_SIZE % workers == worker]
        samples: list[DecodedSample] = []
        try:
            for position, encoded in _encoded_samples(reader, order, own):
                samples.append(_decode(position, encoded, decode))
                if len(samples) == _CHUNK_SIZE:
                    yield _stacked(samples)
                    samples = []
        except DataError as error:
            # Handed over rather than raised: DataLoader would wrap it in a traceback and take 5 s to end its workers.
            yield error
            return
        if samples:
            yield _stacked(samples)


def _stacked(samples: list[DecodedSample]) -> _Chunk:
    """int64 (n,) positions, uint8 (n, 3, S, S) pixels."""
    positions = torch.tensor([sample.position for sample in samples])
    return positions, torch.stack([sample.pixels for sample in samples])
