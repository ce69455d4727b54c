"""Triton kernels of the LayerNorms in a frozen block: forward into the type that products are computed in, backward
from it and on to the stream's gradient, each with one reading and one writing of the stream.

Rows are the N tokens of B samples; each sample may have a weight and bias of its own (their stride is nought where all
have the same).
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x,
    weight,
    bias,
    affine_stride,
    out,
    mean_out,
    rstd_out,
    EPS: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    FULL: tl.constexpr,
    D_TILE: tl.constexpr,
):
    """Program (row): normed (B, N, D), and what `backward` needs, (B, N)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, D_TILE)
    inside = columns < D
    own = row // N * affine_stride + columns
    values = tl.load(x + row * D + columns, mask=inside, other=0.0).to(FULL)
    mean = tl.sum(values, 0) / D
    centred = tl.where(inside, values - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / D + EPS)
    scaled = centred * rstd * tl.load(weight + own, mask=inside, other=0.0).to(FULL)
    shifted = scaled + tl.load(bias + own, mask=inside, other=0.0).to(FULL)
    tl.store(out + row * D + columns, shifted.to(out.dtype.element_ty), mask=inside)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit
def backward(
    normed_grad,
    x,
    mean,
    rstd,
    weight,
    affine_stride,
    stream_grad,
    out,
    weight_grad,
    bias_grad,
    N: tl.constexpr,
    D: tl.constexpr,
    FULL: tl.constexpr,
    D_TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Program (sample, split): every SPLITS-th of the sample's rows. ``out`` (B, N, D) is the gradient of x by way of
    the norm and ``stream_grad``; weight_grad and bias_grad (B, SPLITS, D) are what the program has summed up."""
    sample, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, D_TILE)
    inside = columns < D
    own = tl.load(weight + sample * affine_stride + columns, mask=inside, other=0.0).to(FULL)
    sum_weight = tl.zeros((D_TILE,), FULL)
    sum_bias = tl.zeros((D_TILE,), FULL)
    for token in range(split, N, SPLITS):
        row = sample * N + token
        grad = tl.load(normed_grad + row * D + columns, mask=inside, other=0.0).to(FULL)
        values = tl.load(x + row * D + columns, mask=inside, other=0.0).to(FULL)
        factor = tl.load(rstd + row).to(FULL)
        hat = tl.where(inside, (values - tl.load(mean + row).to(FULL)) * factor, 0.0)
        sum_weight += grad * hat
        sum_bias += grad
        grad = grad * own
        along = tl.sum(grad * hat, 0) / D
        into = (grad - tl.sum(grad, 0) / D - hat * along) * factor
        into += tl.load(stream_grad + row * D + columns, mask=inside, other=0.0).to(FULL)
        tl.store(out + row * D + columns, into.to(out.dtype.element_ty), mask=inside)
    at = (sample * SPLITS + split) * D + columns
    tl.store(weight_grad + at, sum_weight, mask=inside)
    tl.store(bias_grad + at, sum_bias, mask=inside)
