"""A Side block as one forward and two backward Triton kernels (`hst.gpu.kernels.side_block`).

Only the inputs are kept for the backward pass. Results equal those of `hst.side.side_block.SideBlock` up to rounding:
here intermediate values are float32 even where products are computed in bfloat16.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from hst.layers.autocast import product_dtype
from hst.plain import kernels_can_run

MAX_BYTES = 256
"""Maximum size of a side token in the products' type: 128 numbers in bfloat16, 64 in float32. A tile of larger tokens
and its intermediate values would not fit registers and shared memory."""
MAX_SCORES = 64
"""Maximum of heads times meta tokens, each rounded up to a power of two. Half of it above 64 channels."""
NUM_STAGES = 2
"""Pipeline stages of the loads in a kernel's loops. More stages need more registers than there are."""


def can_run(x: torch.Tensor, heads: int, num_meta_tokens: int) -> bool:
    """Whether the kernels can run for side tokens like ``x`` (B, H, W, C)."""
    return kernels_can_run(x) and fits(x.shape[-1], heads, num_meta_tokens, product_dtype(x))


def fits(width: int, heads: int, num_meta_tokens: int, dtype: torch.dtype) -> bool:
    """Whether the kernels support these sizes, with products in ``dtype``."""
    sizes = tiles(width, heads, num_meta_tokens)
    scores = sizes["HEADS_TILE"] * sizes["T_TILE"]
    return sizes["C_TILE"] * dtype.itemsize <= MAX_BYTES and scores <= MAX_SCORES // (2 if sizes["C_TILE"] > 64 else 1)


def num_warps(tile: int) -> int:
    """Number of warps of a program whose tile has this many channels."""
    return 8 if tile > 64 else 4


def fused_side_block(
    x: torch.Tensor,
    folded: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    patches: torch.Tensor,
    path_scales: torch.Tensor | None,
    vectors: torch.Tensor,
    mlp: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    heads: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The block's output (B, H, W, C).

    Args:
        x: side tokens (B, H, W, C).
        folded: keys (B, C, heads * T), their bias and the values, from `MetaCrossAttention.folded`.
        patches: patch features on the ViT's grid (B, h, w, C), not interpolated yet.
        path_scales: drop-path scales of both branches (2, B), or None.
        vectors: (6, C), in the order given in `hst.gpu.kernels.side_tile`.
        mlp: weight and bias of the first linear, weight of the second.
        heads: number of cross-attention heads.
        dtype: type of the products.
    """
    weights = [one[None] for one in (vectors, *mlp)]  # K = 1 task
    out: torch.Tensor = _SideBlock.apply(x, *folded, patches, path_scales, *weights, heads, dtype)
    return out


class _Inputs(NamedTuple):
    """The tensors of K tasks. Samples come one task after the other, equally many of each; weights are (K, ...)."""

    x: torch.Tensor
    keys: torch.Tensor
    bias: torch.Tensor
    values: torch.Tensor
    patches: torch.Tensor
    scales: torch.Tensor | None
    vectors: torch.Tensor
    fc1: torch.Tensor
    fc1_bias: torch.Tensor
    fc2: torch.Tensor


class _SideBlock(torch.autograd.Function):
    """A function of the fields of `_Inputs`, the number of heads and the type of the products."""

    @staticmethod
    def forward(*inputs: Any) -> torch.Tensor:
        *tensors, heads, dtype = inputs
        return _Call(_Inputs(*tensors), heads, dtype).output()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        *tensors, ctx.heads, ctx.dtype = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        call = _Call(_Inputs(*ctx.saved_tensors), ctx.heads, ctx.dtype)
        return (*call.gradients(grad.contiguous()), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[torch.Tensor, int]:
        """Over models: one call with the samples and weights of all."""
        *tensors, heads, dtype = inputs

        def in_front(x: torch.Tensor, dim: int | None) -> torch.Tensor:
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        found = [x if x is None else in_front(x, dim) for x, dim in zip(tensors, in_dims, strict=False)]
        scales = found[_Inputs._fields.index("scales")]
        joined = [x if x is None else x.flatten(0, 1) for x in found]
        if scales is not None:
            joined[_Inputs._fields.index("scales")] = scales.transpose(0, 1).flatten(1)
        out = _SideBlock.apply(*joined, heads, dtype)
        return out.unflatten(0, (info.batch_size, -1)), 0


class _Call:
    """The arguments and sizes that the kernels are called with."""

    def __init__(self, given: _Inputs, heads: int, dtype: torch.dtype) -> None:
        patches, scales = given.patches, given.scales
        if patches.stride()[1:] != (patches.shape[2] * patches.shape[3], patches.shape[3], 1):
            patches = patches.contiguous()
        self.x, self.patches = given.x.contiguous(), patches
        self.of_samples = [one.contiguous() for one in (given.keys, given.bias, given.values)]
        self.weights = [one.contiguous() for one in (given.vectors, given.fc1, given.fc1_bias, given.fc2)]
        self.scales = (self.x, 0, 0) if scales is None else (scales, *scales.stride())
        self.inputs = (self.x, *self.of_samples, patches, patches.stride(0), *self.scales, *self.weights)
        self.samples_per_task = len(given.x) // len(given.fc1)
        _, height, width, channels = given.x.shape
        num_meta_tokens = given.bias.shape[-1] // heads
        self.sizes: dict[str, Any] = {
            **tiles(channels, heads, num_meta_tokens),
            "H": height,
            "W": width,
            "GRID_H": patches.shape[1],
            "GRID_W": patches.shape[2],
            "C": channels,
            "F": given.fc1.shape[1],
            "HEADS": heads,
            "T": num_meta_tokens,
            "HAS_SCALES": scales is not None,
            **_types(given.x.dtype, dtype),
        }
        self.tiles = _parts(height * width, self.sizes["L_TILE"])

    def output(self) -> torch.Tensor:
        """The block's output (B, H, W, C)."""
        out = torch.empty_like(self.x)
        self.launch("forward", (len(out), self.tiles), *self.inputs, out, self.samples_per_task)
        return out

    def gradients(self, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the inputs in their order, given the gradient of the output."""
        x, patches, (vectors, fc1, fc1_bias, fc2) = self.x, self.patches, self.weights
        tasks, splits = len(fc1), min(self.tiles, 8)
        full = torch.float64 if x.dtype == torch.float64 else torch.float32
        into_x, middle, into_middle = (torch.empty_like(x, dtype=full) for _ in range(3))

        def parts(outer: int, count: int, *shape: int) -> torch.Tensor:
            return torch.empty(outer, count, *shape, dtype=full, device=x.device)

        of_samples = [parts(len(x), splits, *one.shape[1:]) for one in self.of_samples]
        of_vectors = parts(len(x), splits, *vectors.shape[1:])
        self.launch(
            "backward_tokens",
            (len(x), splits),
            *self.inputs,
            grad,
            into_x,
            middle,
            into_middle,
            *of_samples,
            of_vectors,
            self.samples_per_task,
            SPLITS=splits,
        )
        rows = _parts(self.samples_per_task * math.prod(x.shape[1:3]), self.sizes["L_TILE"])
        splits = min(rows, 64)
        of_mlp = [parts(tasks, splits, *one.shape[1:]) for one in (fc1, fc1_bias, fc2)]
        self.launch(
            "backward_mlp",
            (tasks, splits, _parts(fc1.shape[1], self.sizes["F_TILE"])),
            middle,
            grad,
            *self.scales,
            *self.weights,
            *of_mlp,
            self.samples_per_task,
            SPLITS=splits,
            L=math.prod(x.shape[1:3]),
        )
        return (
            into_x.to(x.dtype),
            *(part.sum(1).to(one.dtype) for part, one in zip(of_samples, self.of_samples, strict=True)),
            _not_interpolated(into_middle, patches),
            None,
            of_vectors.unflatten(0, (tasks, -1)).sum((1, 2)).to(vectors.dtype),
            *(part.sum(1).to(one.dtype) for part, one in zip(of_mlp, (fc1, fc1_bias, fc2), strict=True)),
        )

    def launch(self, name: str, grid: tuple[int, ...], *inputs: Any, **sizes: int) -> None:
        """Run a kernel of `hst.gpu.kernels.side_block` with those sizes that it takes."""
        kernel = getattr(importlib.import_module("hst.gpu.kernels.side_block"), name)
        taken = {key: value for key, value in {**self.sizes, **sizes}.items() if key in kernel.arg_names}
        with torch.cuda.device_of(self.x):
            kernel[grid](*inputs, **taken, num_warps=num_warps(self.sizes["C_TILE"]), num_stages=NUM_STAGES)


def tiles(width: int, heads: int, num_meta_tokens: int) -> dict[str, int]:
    """Tile sizes of a program, all powers of two. A matrix unit needs at least 16 a side. With 32 tokens and 32 hidden
    values nearly everything stays in the registers of an sm_90; with 64 it does not (the compiler's report)."""
    tokens = _power_of_two(num_meta_tokens)
    return {
        "L_TILE": 32,
        "C_TILE": max(16, _power_of_two(width)),
        "F_TILE": 32,
        "HEADS_TILE": max(_power_of_two(heads), 16 // tokens),
        "T_TILE": tokens,
    }


def _types(x: torch.dtype, products: torch.dtype) -> dict[str, Any]:
    import triton.language as tl

    full = tl.float64 if x == torch.float64 else tl.float32
    low = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return {"FULL": full, "LOW": low.get(products, full)}


def _not_interpolated(grad: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The gradient of patch features (B, h, w, C), given that of the map (B, H, W, C) interpolated from them."""
    if grad.shape != patches.shape:
        b, h, w, c = patches.shape
        backward: Callable[..., torch.Tensor] = torch.ops.aten.upsample_bilinear2d_backward
        nchw = backward(grad.permute(0, 3, 1, 2), grad.shape[1:3], [b, c, h, w], False, None, None)
        grad = nchw.permute(0, 2, 3, 1)
    return grad.to(patches.dtype)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)
