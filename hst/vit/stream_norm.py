"""The LayerNorms of a frozen block, by hand: forward into the type of the products that follow, backward from that type
and on to the gradient that goes past the norm. On a GPU each is one kernel (`hst.gpu.kernels.norm`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from hst.plain import kernels_can_run

MAX_WIDTH = 8192
"""Of a row that a program of a kernel holds."""
PROGRAMS = 1024
"""Of the backward kernel, about: several for each multiprocessor. Each sums up some rows of one sample."""


def norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerNorm of (B, N, D) by a weight and a bias (D,), or (B, D), one a sample, in ``dtype``; with mean and
    1 / deviation (B, N, 1)."""
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
    """Gradients of x, with ``past`` added, of weight and of bias, each None where it is not wanted.

    Args:
        grad: of what came out, in that type.
        x: what went in.
        statistics: mean and 1 / deviation.
        affine: weight and bias.
        past: the gradient of x that does not go through the norm.
        wants_x: the first of the three.
        wants_affine: the others.
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
    """As `norm`."""
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
    """As `norm_backward`, all three."""
    x, grad, past = x.contiguous(), grad.contiguous(), past.contiguous()
    own = _by_sample(weight, len(x))
    out = torch.empty_like(x)
    splits = min(x.shape[1], max(1, PROGRAMS // max(1, len(x))))
    splits = 1 << (splits.bit_length() - 1)  # few numbers: each is compiled for itself
    sums = [torch.empty(len(x), splits, x.shape[-1], dtype=_full(x), device=x.device) for _ in range(2)]
    grid = (len(x), splits)
    _launch("backward", grid, x, grad, x, *statistics, own, own.stride(0), past, out, *sums, SPLITS=splits)
    over = (0, 1) if weight.dim() == 1 else 1
    into_weight, into_bias = (one.sum(over).to(weight.dtype) for one in sums)
    return out, into_weight, into_bias


def _by_kernel(x: torch.Tensor) -> bool:
    return x.shape[-1] <= MAX_WIDTH and kernels_can_run(x)


def _by_sample(affine: torch.Tensor, samples: int) -> torch.Tensor:
    """(D,) or (B, D) -> (B, D), of which a row is contiguous."""
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
