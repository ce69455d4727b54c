"""The LayerNorms of a frozen block, with a hand-written backward pass. The output has the type of the products that
follow, and so has its gradient; the backward pass also adds the gradient that bypasses the norm. On a GPU each pass is
one kernel (`hst.gpu.kernels.norm`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from hst.plain import kernels_can_run

MAX_WIDTH = 8192
"""Maximum width of a row for the kernels. A program holds a whole row."""
PROGRAMS = 1024
"""Approximate number of programs of the backward kernel, several for each multiprocessor. Each sums some rows of one
sample."""


def norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerNorm of x (B, N, D) in ``dtype``, and its mean and 1 / deviation (B, N, 1). Weight and bias are (D,), or
    (B, D) with a row for each sample."""
    if _by_kernel(x):
        return norm_by_kernel(x, weight, bias, eps, dtype)
    if weight.dim() == 1:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    else:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        normed = torch.addcmul(bias[:, None], normed, weight[:, None])
    return normed.to(dtype), mean, rstd


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    statistics: Sequence[torch.Tensor],
    affine: tuple[torch.Tensor, torch.Tensor],
    past: torch.Tensor,
    *,
    wants_x: bool,
    wants_affine: bool,
) -> tuple[Any, Any, Any]:
    """Gradients of x (``past`` included), weight and bias. Each is None if it is not wanted.

    Args:
        grad: gradient of the output, in the output's type.
        x: the input of `norm`.
        statistics: mean and 1 / deviation from `norm`.
        affine: weight and bias.
        past: the gradient of x that bypasses the norm.
        wants_x: whether to return the gradient of x.
        wants_affine: whether to return the gradients of weight and bias.
    """
    weight, bias = affine
    if _by_kernel(x):
        into_x, dweight, dbias = norm_backward_by_kernel(grad, x, statistics, weight, past)
        return into_x if wants_x else None, *((dweight, dbias) if wants_affine else (None, None))
    mean, rstd = statistics
    grad = grad.to(x.dtype)
    shared = weight.dim() == 1
    of = (weight, bias) if shared else (None, None)
    into_x, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        grad if shared else grad * weight[:, None],
        x,
        list(x.shape[-1:]),
        mean,
        rstd,
        *of,
        [wants_x, shared and wants_affine, shared and wants_affine],
    )
    if wants_affine and not shared:
        dweight, dbias = (grad * ((x - mean) * rstd)).sum(1), grad.sum(1)
    return into_x.add_(past) if wants_x else None, dweight, dbias


def norm_by_kernel(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`norm`, by a kernel."""
    x = x.contiguous()
    weight, bias = _by_sample(weight, len(x)), _by_sample(bias, len(x))
    out = torch.empty_like(x, dtype=dtype)
    mean, rstd = (torch.empty(*x.shape[:2], 1, dtype=_full(x), device=x.device) for _ in range(2))
    rows = len(x) * x.shape[1]
    _launch("forward", (rows,), x, x, weight, bias, weight.stride(0), out, mean, rstd, EPS=eps)
    return out, mean, rstd


def norm_backward_by_kernel(
    grad: torch.Tensor,
    x: torch.Tensor,
    statistics: Sequence[torch.Tensor],
    weight: torch.Tensor,
    past: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`norm_backward`, by a kernel, with all three gradients."""
    x, grad, past = x.contiguous(), grad.contiguous(), past.contiguous()
    own = _by_sample(weight, len(x))
    out = torch.empty_like(x)
    splits = min(x.shape[1], max(1, PROGRAMS // max(1, len(x))))
    splits = 1 << (splits.bit_length() - 1)  # a power of two, so few values: each compiles a kernel
    sums = [torch.empty(len(x), splits, x.shape[-1], dtype=_full(x), device=x.device) for _ in range(2)]
    grid = (len(x), splits)
    _launch("backward", grid, x, grad, x, *statistics, own, own.stride(0), past, out, *sums, SPLITS=splits)
    over = (0, 1) if weight.dim() == 1 else 1
    into_weight, into_bias = (one.sum(over).to(weight.dtype) for one in sums)
    return out, into_weight, into_bias


def _by_kernel(x: torch.Tensor) -> bool:
    return x.shape[-1] <= MAX_WIDTH and kernels_can_run(x)


def _by_sample(affine: torch.Tensor, samples: int) -> torch.Tensor:
    """(D,) or (B, D) -> (B, D) with contiguous rows."""
    return affine.contiguous().expand(samples, -1)


def _full(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _launch(name: str, grid: tuple[int, ...], x: torch.Tensor, *inputs: Any, **sizes: Any) -> None:
    import triton.language as tl

    kernel = getattr(importlib.import_module("hst.gpu.kernels.norm"), name)
    tokens, width = x.shape[1:]
    full = tl.float64 if x.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(x):
        kernel[grid](*inputs, **sizes, N=tokens, D=width, FULL=full, D_TILE=1 << (width - 1).bit_length())
