"""Compiles the Side block's kernels for an H200 (sm_90), with no GPU at hand, and prints the shared memory of each."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hst import side_kernels
from hst.fused_side_block import _tiles

SIDE, WIDTH, HEADS = 28, 48, 4
SIZES = {
    **_tiles(WIDTH, HEADS, 2),
    "H": SIDE,
    "W": SIDE,
    "L": SIDE * SIDE,
    "GRID_H": 14,
    "GRID_W": 14,
    "C": WIDTH,
    "F": 4 * WIDTH,
    "HEADS": HEADS,
    "T": 2,
    "HAS_SCALES": True,
    "LOW": tl.bfloat16,
    "FULL": tl.float32,
    "SPLITS": 8,
}
LOW = ("keys", "bias", "values", "patches")
NUMBERS = ("samples_per_task", "patches_stride", "scales_stride_path", "scales_stride_sample")

for kernel in (side_kernels.forward, side_kernels.backward_tokens, side_kernels.backward_mlp):
    signature = {
        name: "constexpr" if name in SIZES else ("i32" if name in NUMBERS else ("*bf16" if name in LOW else "*fp32"))
        for name in kernel.arg_names
    }
    sizes = {name: value for name, value in SIZES.items() if name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    print(kernel.__name__, compiled.metadata.shared)
