"""Finds a ViT's weights inside a checkpoint: programs wrap them in dicts (``state_dict``, ``model``, ``teacher``), and
put prefixes before their names (``module.``, ``backbone.``, ``visual.trunk.``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

_ANCHOR = "patch_embed.proj.weight"
"""Every timm ViT has a weight of this name, so what stands before it is the prefix of all its names."""
_PREFERRED = ("ema", "teacher")
"""Of several ViTs in one file, the averaged one is meant: it is the one that is evaluated."""


def unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the ViT in a checkpoint, with timm's names. What does not belong to it is left out.

    A checkpoint without timm's names is returned as it is, for timm to convert.

    Raises:
        ValueError: it holds several ViTs, and nothing says which is meant.
    """
    tensors = dict(_tensors(checkpoint, ""))
    prefixes = [name.removesuffix(_ANCHOR) for name in tensors if f".{name}".endswith(f".{_ANCHOR}")]
    if not prefixes:
        return tensors
    meant = next(
        ([prefix for prefix in prefixes if word in prefix] for word in _PREFERRED if any(word in p for p in prefixes)),
        prefixes,
    )
    if len(meant) > 1:
        shown = ", ".join(repr(prefix or "no prefix") for prefix in sorted(meant))
        raise ValueError(f"it holds several ViTs, whose names begin with {shown}; save the one that is meant alone")
    return {name.removeprefix(meant[0]): value for name, value in tensors.items() if name.startswith(meant[0])}


def _tensors(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in nested dicts, by their names joined with dots."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{name}.")
