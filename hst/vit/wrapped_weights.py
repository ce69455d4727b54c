"""Finds a ViT's weights inside a checkpoint: programs wrap them in dicts (``state_dict``, ``model``, ``teacher``), and
put prefixes before their names (``module.``, ``backbone.``, ``visual.trunk.``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

_ANCHORS = (
    "patch_embed.proj.weight",  # timm, and all that take its names
    "visual.class_embedding",  # CLIP
    "beit3.vision_embed.cls_token",  # BEiT-3
    "radio_model.model.patch_generator.embedder.weight",  # RADIO
)
"""Names of which every ViT has one: what stands before it is the prefix of all its names. The other ViTs' names are
converted by timm, which expects them without a prefix."""
_PREFERRED = ("ema", "teacher")
"""Of several ViTs in one file, the averaged one is meant: it is the one that is evaluated."""


def unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the ViT in a checkpoint without wrappers and prefixes. What does not belong to it is left out.

    A checkpoint in which no ViT is recognised is returned with all its tensors.

    Raises:
        ValueError: it holds several ViTs, and nothing says which is meant.
    """
    tensors = dict(_tensors(checkpoint, ""))
    prefixes = next(filter(None, (_prefixes(tensors, anchor) for anchor in _ANCHORS)), [])
    if not prefixes:
        return tensors
    by_word = ([prefix for prefix in prefixes if word in re.split("[._]", prefix)] for word in _PREFERRED)
    meant = next(filter(None, by_word), prefixes)
    if len(meant) > 1:
        shown = ", ".join(repr(prefix or "no prefix") for prefix in sorted(meant))
        raise ValueError(f"it holds several ViTs, whose names begin with {shown}; save the one that is meant alone")
    return {name.removeprefix(meant[0]): value for name, value in tensors.items() if name.startswith(meant[0])}


def _prefixes(names: Iterable[str], anchor: str) -> list[str]:
    """What stands before ``anchor``, a whole name or the end of one after a dot."""
    return [name.removesuffix(anchor) for name in names if f".{name}".endswith(f".{anchor}")]


def _tensors(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in nested dicts, by their names joined with dots."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{name}.")
