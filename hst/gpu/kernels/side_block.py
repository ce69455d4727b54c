"""Triton kernels for a Side block (`hst.side.side_block`). They read the side tokens once; plain operations write every
intermediate map to memory.

``forward`` computes the block. ``backward_tokens`` recomputes it and returns the gradients of each sample's tensors.
``backward_mlp`` returns the gradients of the MLP's weights. No sum depends on the order in which programs run.

Sizes: L = H * W side tokens of width C, F hidden values, HEADS heads, T meta tokens. Samples of K tasks come one task
after the other, equally many of each. Loads beyond a size give 0, and a row whose incoming gradients are 0 adds 0 to
every sum, so padding changes nothing.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from hst.gpu.kernels.side_tile import (
    FC2_BIAS,
    NORM1_BIAS,
    NORM1_WEIGHT,
    NORM2_BIAS,
    NORM2_WEIGHT,
    NUM_VECTORS,
    PROJ_BIAS,
    affine,
    branch_scales,
    gelu,
    gelu_slope,
    meta_columns,
    mlp_part,
    norm_backward,
    normalised,
    of_sample,
    to_middle,
    vector,
)


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
    """Program (sample, tile of side tokens): writes a tile of the block's output (B, L, C)."""
    sample = tl.program_id(0)
    task = sample // samples_per_task
    columns = tl.arange(0, C_TILE)
    key, key_bias, value = of_sample(
        keys, bias, values, sample, columns, C, HEADS, T, LOW, FULL, HEADS_TILE, T_TILE
    )  # fmt: skip
    scale1, scale2 = branch_scales(scales, sample, scales_stride_path, scales_stride_sample, HAS_SCALES, FULL)
    rows = tl.program_id(1) * L_TILE + tl.arange(0, L_TILE)
    there = (rows < H * W)[:, None] & (columns < C)[None, :]
    places = (sample.to(tl.int64) * (H * W) + rows)[:, None] * C + columns[None, :]
    tokens = tl.load(x + places, mask=there, other=0.0).to(FULL)
    _, _, _, _, middle = to_middle(
        tokens, key, key_bias, value, scale1, patches + sample.to(tl.int64) * patches_stride, vectors, task, rows,
        columns, H, W, GRID_H, GRID_W, C, LOW, FULL, L_TILE, HEADS_TILE, T_TILE,
    )  # fmt: skip
    hat, _ = normalised(middle, columns, C)
    normed = affine(hat, vectors, task, NORM2_WEIGHT, NORM2_BIAS, columns, C, FULL).to(LOW)
    branch = tl.zeros((L_TILE, C_TILE), FULL) + vector(vectors, task, FC2_BIAS, columns, C, FULL)[None, :]
    for first in range(0, F, F_TILE):
        into, into_bias, back = mlp_part(fc1, fc1_bias, fc2, task, first, columns, C, F, LOW, FULL, F_TILE)
        hidden = tl.dot(normed, into, input_precision="ieee").to(FULL) + into_bias[None, :]
        branch += tl.dot(gelu(hidden).to(LOW), back, input_precision="ieee").to(FULL)
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
    """Program (sample, split): takes every SPLITS-th tile of the sample's side tokens.

    Writes ``grad_x``, ``middle_out`` (the tokens after the injection) and ``grad_middle`` (also the gradient of the
    interpolated patches), all (B, L, C). Writes its sums of the gradients of keys, bias, values and vectors,
    (B, SPLITS, ...).
    """
    sample, split = tl.program_id(0), tl.program_id(1)
    task = sample // samples_per_task
    columns = tl.arange(0, C_TILE)
    key, key_bias, value = of_sample(
        keys, bias, values, sample, columns, C, HEADS, T, LOW, FULL, HEADS_TILE, T_TILE
    )  # fmt: skip
    scale1, scale2 = branch_scales(scales, sample, scales_stride_path, scales_stride_sample, HAS_SCALES, FULL)
    norm1_weight = vector(vectors, task, NORM1_WEIGHT, columns, C, FULL)
    norm2_weight = vector(vectors, task, NORM2_WEIGHT, columns, C, FULL)
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
        hat1, rstd1, normed1, weights, middle = to_middle(
            tokens, key, key_bias, value, scale1, patches + sample.to(tl.int64) * patches_stride, vectors, task, rows,
            columns, H, W, GRID_H, GRID_W, C, LOW, FULL, L_TILE, HEADS_TILE, T_TILE,
        )  # fmt: skip
        tl.store(middle_out + places, middle, mask=there)
        hat2, rstd2 = normalised(middle, columns, C)
        normed2 = affine(hat2, vectors, task, NORM2_WEIGHT, NORM2_BIAS, columns, C, FULL).to(LOW)

        out = tl.load(grad + places, mask=there, other=0.0).to(FULL)
        branch = scale2 * out
        sum_fc2_bias += tl.sum(branch, 0)
        low = branch.to(LOW)
        into_normed = tl.zeros((L_TILE, C_TILE), FULL)
        for first in range(0, F, F_TILE):
            into, into_bias, back = mlp_part(fc1, fc1_bias, fc2, task, first, columns, C, F, LOW, FULL, F_TILE)
            hidden = tl.dot(normed2, into, input_precision="ieee").to(FULL) + into_bias[None, :]
            into_hidden = tl.dot(low, tl.trans(back), input_precision="ieee").to(FULL) * gelu_slope(hidden)
            into_normed += tl.dot(into_hidden.to(LOW), tl.trans(into), input_precision="ieee").to(FULL)
        sum_norm2_weight += tl.sum(into_normed * hat2, 0)
        sum_norm2_bias += tl.sum(into_normed, 0)
        into_middle = out + norm_backward(into_normed * norm2_weight[None, :], hat2, rstd2, C)
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
        into_tokens = into_middle + norm_backward(into_normed * norm1_weight[None, :], hat1, rstd1, C)
        tl.store(grad_x + places, into_tokens, mask=there)

    part = sample * SPLITS + split
    tokens_of_heads, real = meta_columns(HEADS, T, HEADS_TILE, T_TILE)
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
    """Program (task, split, part of the hidden values): takes every SPLITS-th tile of the task's side tokens. Writes
    its sums of the gradients of the MLP's weights and fc1's bias, (K, SPLITS, ...)."""
    task, split, first = tl.program_id(0), tl.program_id(1), tl.program_id(2) * F_TILE
    columns = tl.arange(0, C_TILE)
    into, into_bias, back = mlp_part(fc1, fc1_bias, fc2, task, first, columns, C, F, LOW, FULL, F_TILE)
    sum_fc1 = tl.zeros((F_TILE, C_TILE), FULL)
    sum_bias = tl.zeros((F_TILE,), FULL)
    sum_fc2 = tl.zeros((C_TILE, F_TILE), FULL)
    for first_row in range(split * L_TILE, samples_per_task * L, SPLITS * L_TILE):
        rows = first_row + tl.arange(0, L_TILE)
        of_task = rows < samples_per_task * L
        there = of_task[:, None] & (columns < C)[None, :]
        places = (task.to(tl.int64) * samples_per_task * L + rows)[:, None] * C + columns[None, :]
        hat, _ = normalised(tl.load(middle + places, mask=there, other=0.0).to(FULL), columns, C)
        normed = affine(hat, vectors, task, NORM2_WEIGHT, NORM2_BIAS, columns, C, FULL).to(LOW)
        branch = tl.load(grad + places, mask=there, other=0.0).to(FULL)
        if HAS_SCALES:
            own = scales + scales_stride_path + (task * samples_per_task + rows // L) * scales_stride_sample
            branch = branch * tl.load(own, mask=of_task, other=0.0).to(FULL)[:, None]
        low = branch.to(LOW)
        hidden = tl.dot(normed, into, input_precision="ieee").to(FULL) + into_bias[None, :]
        into_hidden = tl.dot(low, tl.trans(back), input_precision="ieee").to(FULL) * gelu_slope(hidden)
        sum_bias += tl.sum(into_hidden, 0)
        sum_fc1 += tl.dot(tl.trans(into_hidden.to(LOW)), normed, input_precision="ieee").to(FULL)
        sum_fc2 += tl.dot(tl.trans(low), gelu(hidden).to(LOW), input_precision="ieee").to(FULL)
    part = task * SPLITS + split
    hidden_columns = first + tl.arange(0, F_TILE)
    inside, real = columns < C, hidden_columns < F
    at = (part * F + hidden_columns)[:, None] * C + columns[None, :]
    tl.store(grad_fc1 + at, sum_fc1, mask=real[:, None] & inside[None, :])
    tl.store(grad_fc1_bias + part * F + hidden_columns, sum_bias, mask=real)
    at = (part * C + columns)[:, None] * F + hidden_columns[None, :]
    tl.store(grad_fc2 + at, sum_fc2, mask=inside[:, None] & real[None, :])
