"""The types that products are computed in: what autocast says here and now, and parts that choose by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """What products with ``x`` are computed in; autocast leaves float64 as it is."""
    kind = x.device.type
    low = _has_autocast(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if low else x.dtype


def no_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Within, types are chosen by hand for what is computed where ``x`` is."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else contextlib.nullcontext()


def autocast_now(x: torch.Tensor) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Makes the context that is in force now, later again. Casts are not kept in it: those of a run without gradients
    would be found by one with them, and end its graph."""
    kind = x.device.type
    if not _has_autocast(kind):
        return contextlib.nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)


def _has_autocast(kind: str) -> bool:
    """The meta device has none, and says so by an error."""
    return torch.amp.is_autocast_available(kind)
