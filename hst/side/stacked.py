"""Runs side networks of one shape, each on its own task's images, as one network. Every linear becomes a batched
product, every convolution a grouped one, and every batch norm one over all channels. The results are the same, with
fewer and larger kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from hst.backbone import BlockOutputs
from hst.side.hsn import HSN


class SideInput(NamedTuple):
    """The input of a side network."""

    images: torch.Tensor
    """(B, 3, H, W)."""
    vit: BlockOutputs
    path_scales: torch.Tensor | None
    """(paths, B)."""


def stacked_side(sides: Sequence[HSN], inputs: Sequence[SideInput]) -> list[list[torch.Tensor]]:
    """The pyramid of each side network on its own input. Each network's batch statistics are updated.

    Args:
        sides: side networks of one configuration, on one ViT, all in training mode or all in evaluation mode.
        inputs: the input of each, all with the same number and size of images.
    """
    parameters = _stacked([dict(side.named_parameters()) for side in sides])
    buffers = _stacked([dict(side.named_buffers()) for side in sides])
    images = torch.stack([one.images for one in inputs])
    first = inputs[0].vit
    tokens = {tap: torch.stack([one.vit.tokens[tap] for one in inputs]) for tap in first.tokens}
    scales = _stacked_scales(inputs)

    def one_of(
        parameters: dict[str, torch.Tensor],
        buffers: dict[str, torch.Tensor],
        images: torch.Tensor,
        tokens: dict[int, torch.Tensor],
        scales: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        vit = BlockOutputs(tokens, first.grid, first.num_prefix_tokens, None)
        return functional_call(sides[0], (parameters, buffers), (images, vit, scales))

    over = (0, 0, 0, 0, None if scales is None else 0)
    with _types_of_autocast(images):
        pyramid = torch.vmap(one_of, in_dims=over)(parameters, buffers, images, tokens, scales)
    with torch.no_grad():
        for i, side in enumerate(sides):
            _take_back(side, buffers, i)
    return [[level[i] for level in pyramid] for i in range(len(sides))]


def _types_of_autocast(like: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """vmap ignores autocast, so a function mode does its work where it is on."""
    device = like.device.type
    on = torch.is_autocast_enabled(device) and like.dtype != torch.float64
    return _Types(device, torch.get_autocast_dtype(device)) if on else contextlib.nullcontext()


class _Types(TorchFunctionMode):
    """The part of autocast's rules that side networks need. Products and convolutions run in its type, softmax in
    float32, and so do layer norms except on a CPU. Norms that keep a map's type also compute in float32."""

    _LOW = (F.linear, F.conv2d, torch.baddbmm, torch.matmul, torch.Tensor.matmul, torch.einsum)

    def __init__(self, device: str, low: torch.dtype) -> None:
        super().__init__()
        full = (torch.Tensor.softmax,) if device == "cpu" else (torch.Tensor.softmax, F.layer_norm)
        self._types = dict.fromkeys(self._LOW, low) | dict.fromkeys(full, torch.float32)
        self._keeping = (F.batch_norm, F.layer_norm) if device == "cpu" else (F.batch_norm,)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._keeping:
            x, *others = args
            return func(x.float(), *others, **kwargs).to(x.dtype)
        if (dtype := self._types.get(func)) is not None:
            args, kwargs = tree_map_only(torch.Tensor, lambda value: value.to(dtype), (args, kwargs))
        return func(*args, **kwargs)


def _stacked(of_each: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in of_each]) for name in of_each[0]}


def _stacked_scales(inputs: Sequence[SideInput]) -> torch.Tensor | None:
    """(tasks, paths, B). A task without scales keeps every branch."""
    like = next((one.path_scales for one in inputs if one.path_scales is not None), None)
    if like is None:
        return None
    return torch.stack([torch.ones_like(like) if one.path_scales is None else one.path_scales for one in inputs])


def _take_back(side: nn.Module, buffers: dict[str, torch.Tensor], place: int) -> None:
    """Copy the updated statistics of the batch norms into the module."""
    for name, own in side.named_buffers():
        own.copy_(buffers[name][place])
