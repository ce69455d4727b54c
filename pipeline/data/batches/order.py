"""The order of an epoch. It depends on a key and the split alone, not on how many ranks or workers read it.

Position p of the epoch is place `places[p]` of a sequential read of the shards in the order of `shards`. The shards are
permuted, and so is each window of WINDOW samples of their concatenation. So reads stay sequential, and at most one
window is held in memory. A split that fits in one window is permuted as a whole, however it is cut into shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hst.randomness import generator

WINDOW = 4096


@dataclass(frozen=True)
class EpochOrder:
    """One epoch's order of a split of N samples."""

    shards: np.ndarray
    """int64 (shards,): the shard that is read first, second, ..."""
    places: np.ndarray
    """int64 (N,): place of each position in that sequential read."""
    samples: np.ndarray
    """int64 (N,): number of the sample at each position, in the manifest's order."""


def shuffled_order(
    shard_sizes: Sequence[int], key: tuple[int | str, ...], epoch: int, *, window: int = WINDOW
) -> EpochOrder:
    """The order of a training epoch.

    Args:
        shard_sizes: Number of samples in each shard, in the manifest's order.
        key: The seed, then parts that tell apart orders that must differ.
        epoch: Number of the epoch, from 0; every epoch has its own order.
        window: Number of samples that are permuted together.
    """
    seed, *parts = key
    if not isinstance(seed, int):
        raise ValueError(f"key {key!r}: expected a whole number (the seed) first")
    num_samples = sum(shard_sizes)
    shards = np.arange(len(shard_sizes))
    if num_samples > window:
        shards = _permutation(len(shard_sizes), generator(seed, *parts, "order of shards", epoch))
    draws = generator(seed, *parts, "order of samples", epoch)
    starts = range(0, num_samples, window)
    places = [start + _permutation(min(window, num_samples - start), draws) for start in starts]
    return _order(shard_sizes, shards, np.concatenate(places))


def sequential_order(shard_sizes: Sequence[int]) -> EpochOrder:
    """The order of the shards in the manifest, for evaluation."""
    return _order(shard_sizes, np.arange(len(shard_sizes)), np.arange(sum(shard_sizes)))


def _order(shard_sizes: Sequence[int], shards: np.ndarray, places: np.ndarray) -> EpochOrder:
    first = np.concatenate([[0], np.cumsum(shard_sizes)])
    sample_at_place = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in shards])
    return EpochOrder(shards=shards, places=places, samples=sample_at_place[places])


def _permutation(length: int, draws: torch.Generator) -> np.ndarray:
    # Sort random integers stably: a library's shuffle may change with its version.
    keys = torch.randint(0, 2**62, (length,), generator=draws, dtype=torch.int64)
    return np.argsort(keys.numpy(), kind="stable")
