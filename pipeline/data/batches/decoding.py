"""Samples at given positions of an order -> read from their shards and decoded into their places, in that order.

In threads: PIL lets go of the interpreter's lock while it decodes and resizes.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from pipeline.data.batches.order import EpochOrder
from pipeline.data.errors import DataError
from pipeline.data.shards.reader import EncodedSample, ShardReader

MAX_THREADS = 16
# Samples that a thread decodes and hands over together: one by one, handing over costs a tenth of decoding.
_CHUNK_SIZE = 8
_CHUNKS_AHEAD_PER_THREAD = 2

_Encoded = tuple[int, EncodedSample]
"""With its position in the order."""

Decode = Callable[[bytes, int], torch.Tensor]
"""(an image file's bytes, its position in the order) -> uint8 (3, S, S); ValueError where it is no image."""


def decode_into(
    places: Iterator[np.ndarray], reader: ShardReader, decode: Decode, order: EpochOrder, positions: np.ndarray
) -> Generator[int, None, None]:
    """Reads and decodes exactly the samples at `positions`, int64 (n,) ascending, some ahead of what is taken.

    Args:
        places: Where the pixels of each of the positions go, uint8 (3, S, S). The decoding thread writes them there:
            to hand over an array of its own for each would cost a tenth of the time, in memory that comes and goes.
        reader: Of the shards.
        decode: Makes the pixels.
        order: What the positions are places in.
        positions: Which.

    Yields:
        Each position, once its pixels are in their place.

    Raises:
        DataError: a shard or a sample cannot be used, or another number came than was asked for.
    """
    if len(positions) == 0:
        return
    count = 0
    for position in _decoded_ahead(_encoded_samples(reader, order, positions), places, decode):
        if count == len(positions) or position != positions[count]:
            raise DataError(f"{reader.manifest.uri}: position {position} of the order came out of turn")
        count += 1
        yield position
    if count != len(positions):
        raise DataError(f"{reader.manifest.uri}: {count} samples came, {len(positions)} were asked for")


def _encoded_samples(reader: ShardReader, order: EpochOrder, positions: np.ndarray) -> Iterator[_Encoded]:
    """Reads in the order of the shards, so that neighbours are read together; holds what comes before its turn."""
    by_place = np.argsort(order.places[positions])
    numbers = order.samples[positions][by_place].tolist()
    held: dict[int, EncodedSample] = {}
    turn = 0
    # How many come is counted where they are taken.
    for i, number, sample in zip(by_place.tolist(), numbers, reader.read(numbers), strict=False):
        if sample.key != (key := reader.index.entries[number].key):  # its label is looked up by its number
            raise DataError(f"{sample.shard}: sample {sample.key!r} came where {key!r} was asked for")
        held[i] = sample
        while turn in held:
            yield int(positions[turn]), held.pop(turn)
            turn += 1


def _decoded_ahead(encoded: Iterator[_Encoded], places: Iterator[np.ndarray], decode: Decode) -> Iterator[int]:
    """Decodes in threads, while the caller works on the last batch."""
    threads = min(
        MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[list[int]]] = deque()
    try:
        while chunk := list(islice(encoded, _CHUNK_SIZE)):
            pending.append(pool.submit(_decode, chunk, list(islice(places, len(chunk))), decode))
            if len(pending) > threads * _CHUNKS_AHEAD_PER_THREAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(chunk: list[_Encoded], places: list[np.ndarray], decode: Decode) -> list[int]:
    for (position, sample), place in zip(chunk, places, strict=True):
        try:
            pixels = decode(sample.image, position)
        except ValueError as error:
            raise DataError(f"{sample.shard}: sample {sample.key!r}: {error}") from error
        # numpy would stretch what does not fit.
        assert pixels.shape == place.shape, f"pixels of shape {tuple(pixels.shape)}, expected {place.shape}"
        # Copied by numpy, in this thread: torch would wake all of its threads and, on a busy machine, wait for them.
        place[:] = pixels.numpy()
    return [position for position, _ in chunk]
