"""Every random draw of the project comes from a generator keyed by what it is for, never from the global one.

A draw is a function of (seed, key...), for example (seed, task, "drop_path", epoch, step): restarts, the number of
workers and packing several tasks into one process do not change it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed from ``seed`` and ``key``; different keys give independent seeds (sha256)."""
    text = json.dumps([seed, *key], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator for the draws named by ``key``."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *key))


@contextlib.contextmanager
def seeded(seed: int, *key: str | int) -> Iterator[None]:
    """Code that draws from torch's global CPU generator becomes a function of ``key``; the global state is restored."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *key))
        yield
