"""Triton kernels for the LayerNorms of a frozen block. ``forward`` writes the type that products are computed in;
``backward`` reads that type and adds the stream's gradient. Each reads and writes the stream once.

Rows are the N tokens of B samples. Each sample may have its own weight and bias; their stride is 0 if all samples share
them.
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
    """Program (row): writes its part of the output (B, N, D), and of mean and 1 / deviation (B, N) for `backward`."""
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
    """Program (sample, split): takes every SPLITS-th row of the sample. ``out`` (B, N, D) is the gradient of x through
    the norm, plus ``stream_grad``. ``weight_grad`` and ``bias_grad`` (B, SPLITS, D) sum over the program's rows."""
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
