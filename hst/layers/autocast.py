"""The types that products are computed in: autocast's current choice, and ways around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The type of products with ``x``. Autocast leaves float64 as it is."""
    kind = x.device.type
    low = _has_autocast(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if low else x.dtype


def no_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context without autocast on ``x``'s device, for code that chooses its types itself."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else contextlib.nullcontext()


def autocast_now(x: torch.Tensor) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A function that makes the current autocast context again later.

    The context caches no casts: a run with gradients could find casts of a run without them, which would cut its graph.
    """
    kind = x.device.type
    if not _has_autocast(kind):
        return contextlib.nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)


def _has_autocast(kind: str) -> bool:
    """The meta device has no autocast; asking for its state there raises an error."""
    return torch.amp.is_autocast_available(kind)
