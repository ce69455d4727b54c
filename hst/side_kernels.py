"""Triton kernels of a Side block (`hst.side_block`), which go once over the side tokens where plain operations write
every map in between to memory: ``forward``; ``backward_tokens``, which computes all of that again and gives the
gradients of what each sample has; ``backward_mlp``, which gives those of the MLP's weights. No sum depends on the
order in which programs run.

Sizes are counted in side tokens L = H * W of width C, hidden values F, heads and T meta tokens. Samples of K tasks come
one task after the other, as many of each. Loads beyond a size give nought, and where all gradients that come in are
nought, so are those that go out.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

NORM1_WEIGHT, NORM1_BIAS, PROJ_BIAS, NORM2_WEIGHT, NORM2_BIAS, FC2_BIAS = (tl.constexpr(i) for i in range(6))
"""Places in ``vectors`` (K, NUM_VECTORS, C)."""
NUM_VECTORS = tl.constexpr(6)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_GAUSS = tl.constexpr(0.3989422804014327)
_EPS = tl.constexpr(1e-6)


@triton.jit
def forward(
    x,
    keys,
    bias,
    values,
    patches,
    patches_stride,
    scales,
    scales_stride_path,
    scales_stride_sample,
    vectors,
    fc1,
    fc1_bias,
    fc2,
    out,
    samples_per_task,
    H: tl.constexpr,
    W: tl.constexpr,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    C: tl.constexpr,
    F: tl.constexpr,
    HEADS: tl.constexpr,
    T: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    LOW: tl.constexpr,
    FULL: tl.constexpr,
    L_TILE: tl.constexpr,
    C_TILE: tl.constexpr,
    F_TILE: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    T_TILE: tl.constexpr,
):
    """Program (sample, tile of side tokens): a tile of the block's output (B, L, C)."""
    sample = tl.program_id(0)
    task = sample // samples_per_task
    columns = tl.arange(0, C_TILE)
    key, key_bias, value = _of_sample(
        keys, bias, values, sample, columns, C, HEADS, T, LOW, FULL, HEADS_TILE, T_TILE
    )  # fmt: skip
    scale1, scale2 = _scales(scales, sample, scales_stride_path, scales_stride_sample, HAS_SCALES, FULL)
    rows = tl.program_id(1) * L_TILE + tl.arange(0, L_TILE)
    there = (rows < H * W)[:, None] & (columns < C)[None, :]
    places = (sample.to(tl.int64) * (H * W) + rows)[:, None] * C + columns[None, :]
    tokens = tl.load(x + places, mask=there, other=0.0).to(FULL)
    _, _, _, _, middle = _to_middle(
        tokens, key, key_bias, value, scale1, patches + sample.to(tl.int64) * patches_stride, vectors, task, rows,
        columns, H, W, GRID_H, GRID_W, C, LOW, FULL, L_TILE, HEADS_TILE, T_TILE,
    )  # fmt: skip
    hat, _ = _normalised(middle, columns, C)
    normed = _affine(hat, vectors, task, NORM2_WEIGHT, NORM2_BIAS, columns, C, FULL).to(LOW)
    branch = tl.zeros((L_TILE, C_TILE), FULL) + _vector(vectors, task, FC2_BIAS, columns, C, FULL)[None, :]
    for first in range(0, F, F_TILE):
        into, into_bias, back = _mlp_part(fc1, fc1_bias, fc2, task, first, columns, C, F, LOW, FULL, F_TILE)
        hidden = tl.dot(normed, into, input_precision="ieee").to(FULL) + into_bias[None, :]
        branch += tl.dot(_gelu(hidden).to(LOW), back, input_precision="ieee").to(FULL)
    tl.store(out + places, middle + scale2 * branch, mask=there)


@triton.jit
def backward_tokens(
    x,
    keys,
    bias,
    values,
    patches,
    patches_stride,
    scales,
    scales_stride_path,
    scales_stride_sample,
    vectors,
    fc1,
    fc1_bias,
    fc2,
    grad,
    grad_x,
    middle_out,
    grad_middle,
    grad_keys,
    grad_bias,
    grad_values,
    grad_vectors,
    samples_per_task,
    H: tl.constexpr,
    W: tl.constexpr,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    C: tl.constexpr,
    F: tl.constexpr,
    HEADS: tl.constexpr,
    T: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    LOW: tl.constexpr,
    FULL: tl.constexpr,
    L_TILE: tl.constexpr,
    C_TILE: tl.constexpr,
    F_TILE: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    T_TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Program (sample, split): every SPLITS-th tile of the sample's side tokens. Written are ``grad_x``,
    ``middle_out`` (the tokens after the injection), ``grad_middle`` (also the interpolated patches'), all (B, L, C);
    and what the program has summed up, (B, SPLITS, ...) of keys, bias, values and vectors."""
    sample, split = tl.program_id(0), tl.program_id(1)
    task = sample // samples_per_task
    columns = tl.arange(0, C_TILE)
    key, key_bias, value = _of_sample(
        keys, bias, values, sample, columns, C, HEADS, T, LOW, FULL, HEADS_TILE, T_TILE
    )  # fmt: skip
    scale1, scale2 = _scales(scales, sample, scales_stride_path, scales_stride_sample, HAS_SCALES, FULL)
    norm1_weight = _vector(vectors, task, NORM1_WEIGHT, columns, C, FULL)
    norm2_weight = _vector(vectors, task, NORM2_WEIGHT, columns, C, FULL)
    sum_keys = tl.zeros((C_TILE, HEADS_TILE * T_TILE), FULL)
    sum_bias = tl.zeros((HEADS_TILE * T_TILE,), FULL)
    sum_values = tl.zeros((HEADS_TILE * T_TILE, C_TILE), FULL)
    sum_norm1_weight = tl.zeros((C_TILE,), FULL)
    sum_norm1_bias = tl.zeros((C_TILE,), FULL)
    sum_proj_bias = tl.zeros((C_TILE,), FULL)
    sum_norm2_weight = tl.zeros((C_TILE,), FULL)
    sum_norm2_bias = tl.zeros((C_TILE,), FULL)
    sum_fc2_bias = tl.zeros((C_TILE,), FULL)
    for first_row in range(split * L_TILE, H * W, SPLITS * L_TILE):
        rows = first_row + tl.arange(0, L_TILE)
        there = (rows < H * W)[:, None] & (columns < C)[None, :]
        places = (sample.to(tl.int64) * (H * W) + rows)[:, None] * C + columns[None, :]
        tokens = tl.load(x + places, mask=there, other=0.0).to(FULL)
        hat1, rstd1, normed1, weights, middle = _to_middle(
            tokens, key, key_bias, value, scale1, patches + sample.to(tl.int64) * patches_stride, vectors, task, rows,
            columns, H, W, GRID_H, GRID_W, C, LOW, FULL, L_TILE, HEADS_TILE, T_TILE,
        )  # fmt: skip
        tl.store(middle_out + places, middle, mask=there)
        hat2, rstd2 = _normalised(middle, columns, C)
        normed2 = _affine(hat2, vectors, task, NORM2_WEIGHT, NORM2_BIAS, columns, C, FULL).to(LOW)

        out = tl.load(grad + places, mask=there, other=0.0).to(FULL)
        branch = scale2 * out
        sum_fc2_bias += tl.sum(branch, 0)
        low = branch.to(LOW)
        into_normed = tl.zeros((L_TILE, C_TILE), FULL)
        for first in range(0, F, F_TILE):
            into, into_bias, back = _mlp_part(fc1, fc1_bias, fc2, task, first, columns, C, F, LOW, FULL, F_TILE)
            hidden = tl.dot(normed2, into, input_precision="ieee").to(FULL) + into_bias[None, :]
            into_hidden = tl.dot(low, tl.trans(back), input_precision="ieee").to(FULL) * _gelu_slope(hidden)
            into_normed += tl.dot(into_hidden.to(LOW), tl.trans(into), input_precision="ieee").to(FULL)
        sum_norm2_weight += tl.sum(into_normed * hat2, 0)
        sum_norm2_bias += tl.sum(into_normed, 0)
        into_middle = out + _norm_backward(into_normed * norm2_weight[None, :], hat2, rstd2, C)
        tl.store(grad_middle + places, into_middle, mask=there)

        branch = scale1 * into_middle
        sum_proj_bias += tl.sum(branch, 0)
        low = branch.to(LOW)
        sum_values += tl.dot(tl.trans(weights.to(LOW)), low, input_precision="ieee").to(FULL)
        into_weights = tl.dot(low, tl.trans(value), input_precision="ieee").to(FULL)
        by_head = tl.reshape(into_weights, (L_TILE, HEADS_TILE, T_TILE))
        own = tl.reshape(weights, (L_TILE, HEADS_TILE, T_TILE))
        by_head = own * (by_head - tl.sum(own * by_head, 2)[:, :, None])
        into_scores = tl.reshape(by_head, (L_TILE, HEADS_TILE * T_TILE))
        sum_bias += tl.sum(into_scores, 0)
        sum_keys += tl.dot(tl.trans(normed1), into_scores.to(LOW), input_precision="ieee").to(FULL)
        into_normed = tl.dot(into_scores.to(LOW), tl.trans(key), input_precision="ieee").to(FULL)
        sum_norm1_weight += tl.sum(into_normed * hat1, 0)
        sum_norm1_bias += tl.sum(into_normed, 0)
        into_tokens = into_middle + _norm_backward(into_normed * norm1_weight[None, :], hat1, rstd1, C)
        tl.store(grad_x + places, into_tokens, mask=there)

    part = sample * SPLITS + split
    tokens_of_heads, real = _meta_columns(HEADS, T, HEADS_TILE, T_TILE)
    inside = columns < C
    at = (part * C + columns)[:, None] * (HEADS * T) + tokens_of_heads[None, :]
    tl.store(grad_keys + at, sum_keys, mask=inside[:, None] & real[None, :])
    tl.store(grad_bias + part * (HEADS * T) + tokens_of_heads, sum_bias, mask=real)
    at = (part * (HEADS * T) + tokens_of_heads)[:, None] * C + columns[None, :]
    tl.store(grad_values + at, sum_values, mask=real[:, None] & inside[None, :])
    own_vectors = grad_vectors + part * NUM_VECTORS * C + columns
    tl.store(own_vectors + NORM1_WEIGHT * C, sum_norm1_weight, mask=inside)
    tl.store(own_vectors + NORM1_BIAS * C, sum_norm1_bias, mask=inside)
    tl.store(own_vectors + PROJ_BIAS * C, sum_proj_bias, mask=inside)
    tl.store(own_vectors + NORM2_WEIGHT * C, sum_norm2_weight, mask=inside)
    tl.store(own_vectors + NORM2_BIAS * C, sum_norm2_bias, mask=inside)
    tl.store(own_vectors + FC2_BIAS * C, sum_fc2_bias, mask=inside)


@triton.jit
def backward_mlp(
    middle,
    grad,
    scales,
    scales_stride_path,
    scales_stride_sample,
    vectors,
    fc1,
    fc1_bias,
    fc2,
    grad_fc1,
    grad_fc1_bias,
    grad_fc2,
    samples_per_task,
    L: tl.constexpr,
    C: tl.constexpr,
    F: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    LOW: tl.constexpr,
    FULL: tl.constexpr,
    L_TILE: tl.constexpr,
    C_TILE: tl.constexpr,
    F_TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Program (task, split, part of the hidden values): every SPLITS-th tile of the task's side tokens. Written are
    sums (K, SPLITS, ...), shaped as the MLP's weights and fc1's bias."""
    task, split, first = tl.program_id(0), tl.program_id(1), tl.program_id(2) * F_TILE
    columns = tl.arange(0, C_TILE)
    into, into_bias, back = _mlp_part(fc1, fc1_bias, fc2, task, first, columns, C, F, LOW, FULL, F_TILE)
    sum_fc1 = tl.zeros((F_TILE, C_TILE), FULL)
    sum_bias = tl.zeros((F_TILE,), FULL)
    sum_fc2 = tl.zeros((C_TILE, F_TILE), FULL)
    for first_row in range(split * L_TILE, samples_per_task * L, SPLITS * L_TILE):
        rows = first_row + tl.arange(0, L_TILE)
        of_task = rows < samples_per_task * L
        there = of_task[:, None] & (columns < C)[None, :]
        places = (task.to(tl.int64) * samples_per_task * L + rows)[:, None] * C + columns[None, :]
        hat, _ = _normalised(tl.load(middle + places, mask=there, other=0.0).to(FULL), columns, C)
        normed = _affine(hat, vectors, task, NORM2_WEIGHT, NORM2_BIAS, columns, C, FULL).to(LOW)
        branch = tl.load(grad + places, mask=there, other=0.0).to(FULL)
        if HAS_SCALES:
            own = scales + scales_stride_path + (task * samples_per_task + rows // L) * scales_stride_sample
            branch = branch * tl.load(own, mask=of_task, other=0.0).to(FULL)[:, None]
        low = branch.to(LOW)
        hidden = tl.dot(normed, into, input_precision="ieee").to(FULL) + into_bias[None, :]
        into_hidden = tl.dot(low, tl.trans(back), input_precision="ieee").to(FULL) * _gelu_slope(hidden)
        sum_bias += tl.sum(into_hidden, 0)
        sum_fc1 += tl.dot(tl.trans(into_hidden.to(LOW)), normed, input_precision="ieee").to(FULL)
        sum_fc2 += tl.dot(tl.trans(low), _gelu(hidden).to(LOW), input_precision="ieee").to(FULL)
    part = task * SPLITS + split
    hidden_columns = first + tl.arange(0, F_TILE)
    inside, real = columns < C, hidden_columns < F
    at = (part * F + hidden_columns)[:, None] * C + columns[None, :]
    tl.store(grad_fc1 + at, sum_fc1, mask=real[:, None] & inside[None, :])
    tl.store(grad_fc1_bias + part * F + hidden_columns, sum_bias, mask=real)
    at = (part * C + columns)[:, None] * F + hidden_columns[None, :]
    tl.store(grad_fc2 + at, sum_fc2, mask=inside[:, None] & real[None, :])


@triton.jit
def _to_middle(
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
    """Cross-attention and injection (eq. 3, 4) of a tile of tokens; what the first LayerNorm makes of them before its
    affine map, 1 / deviation, and after it; the attention's weights; the tokens after both."""
    hat, rstd = _normalised(tokens, columns, C)
    normed = _affine(hat, vectors, task, NORM1_WEIGHT, NORM1_BIAS, columns, C, FULL).to(LOW)
    scores = tl.dot(normed, key, input_precision="ieee").to(FULL) + key_bias[None, :]
    by_head = tl.reshape(scores, (L_TILE, HEADS_TILE, T_TILE))
    by_head = tl.exp(by_head - tl.max(by_head, 2)[:, :, None])
    by_head = by_head / tl.sum(by_head, 2)[:, :, None]
    weights = tl.reshape(by_head, (L_TILE, HEADS_TILE * T_TILE))
    branch = tl.dot(weights.to(LOW), value, input_precision="ieee").to(FULL)
    branch += _vector(vectors, task, PROJ_BIAS, columns, C, FULL)[None, :]
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
    """Side tokens' patch features: a sample's (GRID_H, GRID_W, C), bilinear as torch's with ``align_corners=False``."""
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
    """The two old places that a new one lies between, and how near it is to the second."""
    at = tl.maximum((places.to(FULL) + 0.5) * OLD / NEW - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), OLD - 1)
    return first, tl.minimum(first + 1, OLD - 1), at - first.to(FULL)


@triton.jit
def _patch(patches, at, rows, L: tl.constexpr, columns, C: tl.constexpr, FULL: tl.constexpr):
    there = (rows < L)[:, None] & (columns < C)[None, :]
    return tl.load(patches + at[:, None] * C + columns[None, :], mask=there, other=0.0).to(FULL)


@triton.jit
def _meta_columns(HEADS: tl.constexpr, T: tl.constexpr, HEADS_TILE: tl.constexpr, T_TILE: tl.constexpr):
    """For the padded columns of scores: their places among HEADS * T, and which have one."""
    padded = tl.arange(0, HEADS_TILE * T_TILE)
    head, token = padded // T_TILE, padded % T_TILE
    return head * T + token, (head < HEADS) & (token < T)


@triton.jit
def _of_sample(
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
    """A sample's folded keys (C, HEADS * T), their bias, values (HEADS * T, C), padded. Of heads that are not there the
    values are nought, of meta tokens that are not there the weights."""
    places, real = _meta_columns(HEADS, T, HEADS_TILE, T_TILE)
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
def _scales(scales, sample, stride_path, stride_sample, HAS_SCALES: tl.constexpr, FULL: tl.constexpr):
    """Of a sample's two branches."""
    if HAS_SCALES:
        own = scales + sample * stride_sample
        return tl.load(own).to(FULL), tl.load(own + stride_path).to(FULL)
    return tl.full((), 1.0, FULL), tl.full((), 1.0, FULL)


@triton.jit
def _mlp_part(
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
    """Some of the hidden values' weights: into them (C, F_TILE), their bias, back (F_TILE, C)."""
    hidden = first + tl.arange(0, F_TILE)
    inside, real = columns < C, hidden < F
    at = (task * F + hidden)[None, :] * C + columns[:, None]
    into = tl.load(fc1 + at, mask=inside[:, None] & real[None, :], other=0.0).to(LOW)
    into_bias = tl.load(fc1_bias + task * F + hidden, mask=real, other=0.0).to(FULL)
    at = (task * C + columns)[None, :] * F + hidden[:, None]
    back = tl.load(fc2 + at, mask=real[:, None] & inside[None, :], other=0.0).to(LOW)
    return into, into_bias, back


@triton.jit
def _vector(vectors, task, which: tl.constexpr, columns, C: tl.constexpr, FULL: tl.constexpr):
    return tl.load(vectors + (task * NUM_VECTORS + which) * C + columns, mask=columns < C, other=0.0).to(FULL)


@triton.jit
def _affine(hat, vectors, task, weight: tl.constexpr, bias: tl.constexpr, columns, C: tl.constexpr, FULL: tl.constexpr):
    scaled = hat * _vector(vectors, task, weight, columns, C, FULL)[None, :]
    return scaled + _vector(vectors, task, bias, columns, C, FULL)[None, :]


@triton.jit
def _normalised(x, columns, C: tl.constexpr):
    """Rows of mean 0 and deviation 1, and what they were multiplied with."""
    centred = tl.where((columns < C)[None, :], x - (tl.sum(x, 1) / C)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + _EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def _norm_backward(grad, hat, rstd, C: tl.constexpr):
    """Of what `_normalised` was given, by the gradient of ``hat``."""
    along = (tl.sum(grad * hat, 1) / C)[:, None]
    return (grad - (tl.sum(grad, 1) / C)[:, None] - hat * along) * rstd[:, None]


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit
def _gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * _SQRT_HALF)) + x * tl.exp(-0.5 * x * x) * _GAUSS
