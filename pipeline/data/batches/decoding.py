"""Reads the samples at given positions of an order and decodes them into given places, in that order.

It decodes in threads: PIL releases the interpreter's lock while it decodes and resizes.
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
# Number of samples that a thread decodes and hands over together. One by one, handing over costs a tenth of decoding.
_CHUNK_SIZE = 8
_CHUNKS_AHEAD_PER_THREAD = 2

_Encoded = tuple[int, EncodedSample]
"""A sample's position in the order, and the sample."""

Decode = Callable[[bytes, int], torch.Tensor]
"""(an image file's bytes, its position in the order) -> uint8 (3, S, S); raises ValueError if it is no image."""


def decode_into(
    places: Iterator[np.ndarray], reader: ShardReader, decode: Decode, order: EpochOrder, positions: np.ndarray
) -> Generator[int, None, None]:
    """Reads and decodes exactly the samples at `positions`, int64 (n,) ascending, some ahead of the caller.

    Args:
        places: The arrays for the pixels of the positions, uint8 (3, S, S). The decoding threads write into them: a new
            array for each sample would cost a tenth of the time, in allocations.
        reader: Reader of the shards.
        decode: Makes the pixels.
        order: The order that the positions refer to.
        positions: The wanted positions.

    Yields:
        Each position, once its pixels are in place.

    Raises:
        DataError: A shard or a sample cannot be used, or the number of samples differs from what was asked for.
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
    """Reads in the order of the shards, so that neighbours are read together. Samples that come early are held."""
    by_place = np.argsort(order.places[positions])
    numbers = order.samples[positions][by_place].tolist()
    held: dict[int, EncodedSample] = {}
    turn = 0
    # decode_into counts the samples, so zip need not be strict.
    for i, number, sample in zip(by_place.tolist(), numbers, reader.read(numbers), strict=False):
        if sample.key != (key := reader.index.entries[number].key):  # the label is looked up by number
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
        # numpy would broadcast another shape.
        assert pixels.shape == place.shape, f"pixels of shape {tuple(pixels.shape)}, expected {place.shape}"
        # numpy copies in this thread: torch would wake all its threads and, on a busy machine, wait for them.
        place[:] = pixels.numpy()
    return [position for position, _ in chunk]
