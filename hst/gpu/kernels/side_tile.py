"""Parts of a Side block's kernels (`hst.gpu.kernels.side_block`): loads, and work on a tile of side tokens."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

NORM1_WEIGHT, NORM1_BIAS, PROJ_BIAS, NORM2_WEIGHT, NORM2_BIAS, FC2_BIAS = (tl.constexpr(i) for i in range(6))
"""Indices into ``vectors`` (K, NUM_VECTORS, C)."""
NUM_VECTORS = tl.constexpr(6)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_GAUSS = tl.constexpr(0.3989422804014327)
_EPS = tl.constexpr(1e-6)


@triton.jit
def to_middle(
    tokens,
    key,
    key_bias,
    value,
    scale,
    patches,
    vectors,
    task,
    rows,
    columns,
    H: tl.constexpr,
    W: tl.constexpr,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    C: tl.constexpr,
    LOW: tl.constexpr,
    FULL: tl.constexpr,
    L_TILE: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    T_TILE: tl.constexpr,
):
    """Cross-attention and injection (eq. 3, 4) for a tile of tokens.

    Returns the first LayerNorm's values before its affine map, its 1 / deviation, its output, the attention weights,
    and the tokens after the injection.
    """
    hat, rstd = normalised(tokens, columns, C)
    normed = affine(hat, vectors, task, NORM1_WEIGHT, NORM1_BIAS, columns, C, FULL).to(LOW)
    scores = tl.dot(normed, key, input_precision="ieee").to(FULL) + key_bias[None, :]
    by_head = tl.reshape(scores, (L_TILE, HEADS_TILE, T_TILE))
    by_head = tl.exp(by_head - tl.max(by_head, 2)[:, :, None])
    by_head = by_head / tl.sum(by_head, 2)[:, :, None]
    weights = tl.reshape(by_head, (L_TILE, HEADS_TILE * T_TILE))
    branch = tl.dot(weights.to(LOW), value, input_precision="ieee").to(FULL)
    branch += vector(vectors, task, PROJ_BIAS, columns, C, FULL)[None, :]
    middle = tokens + scale * branch + _interpolated(patches, rows, columns, H, W, GRID_H, GRID_W, C, FULL)
    return hat, rstd, normed, weights, middle


@triton.jit
def _interpolated(
    patches,
    rows,
    columns,
    H: tl.constexpr,
    W: tl.constexpr,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    C: tl.constexpr,
    FULL: tl.constexpr,
):
    """A sample's patch features (GRID_H, GRID_W, C) at the side tokens, interpolated bilinearly as torch does with
    ``align_corners=False``."""
    if H == GRID_H and W == GRID_W:
        return _patch(patches, rows, rows, H * W, columns, C, FULL)
    top, bottom, down = _between(rows // W, H, GRID_H, FULL)
    left, right, across = _between(rows % W, W, GRID_W, FULL)
    upper = _patch(patches, top * GRID_W + left, rows, H * W, columns, C, FULL) * (1 - across)[:, None]
    upper += _patch(patches, top * GRID_W + right, rows, H * W, columns, C, FULL) * across[:, None]
    lower = _patch(patches, bottom * GRID_W + left, rows, H * W, columns, C, FULL) * (1 - across)[:, None]
    lower += _patch(patches, bottom * GRID_W + right, rows, H * W, columns, C, FULL) * across[:, None]
    return upper * (1 - down)[:, None] + lower * down[:, None]


@triton.jit
def _between(places, NEW: tl.constexpr, OLD: tl.constexpr, FULL: tl.constexpr):
    """For each new position: the two old positions around it, and the weight of the second."""
    at = tl.maximum((places.to(FULL) + 0.5) * OLD / NEW - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), OLD - 1)
    return first, tl.minimum(first + 1, OLD - 1), at - first.to(FULL)


@triton.jit
def _patch(patches, at, rows, L: tl.constexpr, columns, C: tl.constexpr, FULL: tl.constexpr):
    there = (rows < L)[:, None] & (columns < C)[None, :]
    return tl.load(patches + at[:, None] * C + columns[None, :], mask=there, other=0.0).to(FULL)


@triton.jit
def meta_columns(HEADS: tl.constexpr, T: tl.constexpr, HEADS_TILE: tl.constexpr, T_TILE: tl.constexpr):
    """For each padded column of the scores: its index among HEADS * T, and whether it has one."""
    padded = tl.arange(0, HEADS_TILE * T_TILE)
    head, token = padded // T_TILE, padded % T_TILE
    return head * T + token, (head < HEADS) & (token < T)


@triton.jit
def of_sample(
    keys,
    bias,
    values,
    sample,
    columns,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    T: tl.constexpr,
    LOW: tl.constexpr,
    FULL: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    T_TILE: tl.constexpr,
):
    """A sample's folded keys (C, HEADS * T), their bias, and values (HEADS * T, C), all padded. Padded heads have
    values of 0, and padded meta tokens get attention weights of 0."""
    places, real = meta_columns(HEADS, T, HEADS_TILE, T_TILE)
    inside = columns < C
    at = (sample * C + columns)[:, None] * (HEADS * T) + places[None, :]
    key = tl.load(keys + at, mask=inside[:, None] & real[None, :], other=0.0).to(LOW)
    key_bias = tl.load(bias + sample * (HEADS * T) + places, mask=real, other=0.0).to(FULL)
    no_token = tl.arange(0, HEADS_TILE * T_TILE) % T_TILE >= T
    key_bias = tl.where(no_token, float("-inf"), key_bias)
    at = (sample * (HEADS * T) + places)[:, None] * C + columns[None, :]
    value = tl.load(values + at, mask=real[:, None] & inside[None, :], other=0.0).to(LOW)
    return key, key_bias, value


@triton.jit
def branch_scales(scales, sample, stride_path, stride_sample, HAS_SCALES: tl.constexpr, FULL: tl.constexpr):
    """Drop-path scales of a sample's two branches."""
    if HAS_SCALES:
        own = scales + sample * stride_sample
        return tl.load(own).to(FULL), tl.load(own + stride_path).to(FULL)
    return tl.full((), 1.0, FULL), tl.full((), 1.0, FULL)


@triton.jit
def mlp_part(
    fc1,
    fc1_bias,
    fc2,
    task,
    first,
    columns,
    C: tl.constexpr,
    F: tl.constexpr,
    LOW: tl.constexpr,
    FULL: tl.constexpr,
    F_TILE: tl.constexpr,
):
    """The weights of a tile of hidden values: fc1's (C, F_TILE), its bias, and fc2's (F_TILE, C)."""
    hidden = first + tl.arange(0, F_TILE)
    inside, real = columns < C, hidden < F
    at = (task * F + hidden)[None, :] * C + columns[:, None]
    into = tl.load(fc1 + at, mask=inside[:, None] & real[None, :], other=0.0).to(LOW)
    into_bias = tl.load(fc1_bias + task * F + hidden, mask=real, other=0.0).to(FULL)
    at = (task * C + columns)[None, :] * F + hidden[:, None]
    back = tl.load(fc2 + at, mask=real[:, None] & inside[None, :], other=0.0).to(LOW)
    return into, into_bias, back


@triton.jit
def vector(vectors, task, which: tl.constexpr, columns, C: tl.constexpr, FULL: tl.constexpr):
    return tl.load(vectors + (task * NUM_VECTORS + which) * C + columns, mask=columns < C, other=0.0).to(FULL)


@triton.jit
def affine(hat, vectors, task, weight: tl.constexpr, bias: tl.constexpr, columns, C: tl.constexpr, FULL: tl.constexpr):
    scaled = hat * vector(vectors, task, weight, columns, C, FULL)[None, :]
    return scaled + vector(vectors, task, bias, columns, C, FULL)[None, :]


@triton.jit
def normalised(x, columns, C: tl.constexpr):
    """Rows scaled to mean 0 and deviation 1, and their factors 1 / deviation."""
    centred = tl.where((columns < C)[None, :], x - (tl.sum(x, 1) / C)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + _EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def norm_backward(grad, hat, rstd, C: tl.constexpr):
    """The gradient of the input of `normalised`, given the gradient of its output ``hat``."""
    along = (tl.sum(grad * hat, 1) / C)[:, None]
    return (grad - (tl.sum(grad, 1) / C)[:, None] - hat * along) * rstd[:, None]


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit
def gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * _SQRT_HALF)) + x * tl.exp(-0.5 * x * x) * _GAUSS
