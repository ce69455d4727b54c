"""Every random draw of the project comes from a generator with a key that names its purpose, never from the global one.

A draw is a function of (seed, key...), for example (seed, task, "drop_path", epoch, step). Restarts, the number of
workers and packing several tasks into one process do not change it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed from ``seed`` and ``key``. Different keys give independent seeds (sha256)."""
    text = json.dumps([seed, *key], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator for the draws named by ``key``."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *key))


def python_generator(seed: int, *key: str | int) -> random.Random:
    """A generator of the standard library, to reproduce the draws of code that uses ``random``."""
    return random.Random(derive_seed(seed, *key))


def numpy_generator(seed: int, *key: str | int) -> np.random.RandomState:
    """numpy's legacy generator, to reproduce the draws of code that uses ``numpy.random``."""
    import numpy as np

    return np.random.RandomState(divmod(derive_seed(seed, *key), 2**32))


@contextlib.contextmanager
def seeded(seed: int, *key: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator by ``key`` for code that draws from it, and restore its state afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *key))
        yield
