"""Compiles all kernels for an H200 (sm_90), which needs no GPU, and prints the shared memory that each takes."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hst.gpu.fused_side_block import NUM_STAGES, num_warps, tiles
from hst.gpu.kernels import norm, side_block

SIDE, WIDTH, HEADS = 7, 72, 12
"""The widest stage of HSN-B, which takes the most shared memory."""
SIZES = {
    **tiles(WIDTH, HEADS, 2),
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
    "EPS": 1e-6,
    "N": 198,
    "D": 768,
    "D_TILE": 1024,
}
LOW = {
    side_block: ("keys", "bias", "values", "patches"),
    norm: ("out", "normed_grad"),
}
"""Arguments in bfloat16."""
KERNELS = {
    side_block: (side_block.forward, side_block.backward_tokens, side_block.backward_mlp),
    norm: (norm.forward, norm.backward),
}


def type_of(name: str, low: tuple[str, ...]) -> str:
    """Triton's name for the type of an argument."""
    if name == "samples_per_task" or "stride" in name:
        return "i32"
    return "*bf16" if name in low else "*fp32"


def compiled(module: Any, kernel: Any, **changed: Any) -> Any:
    """Compile for sm_90. A number in ``changed`` becomes a constant, as Triton makes of an argument of 1."""
    sizes = {name: value for name, value in {**SIZES, **changed}.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in sizes else type_of(name, LOW[module]) for name in kernel.arg_names}
    options = {"num_warps": num_warps(SIZES["C_TILE"]), "num_stages": NUM_STAGES}
    source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


for module, kernels in KERNELS.items():
    for kernel in kernels:
        shared = compiled(module, kernel).metadata.shared
        print(f"{module.__name__.removeprefix('hst.gpu.kernels.')}.{kernel.__name__}", shared)
for kernel in KERNELS[side_block]:
    compiled(side_block, kernel, H=14, W=14, HAS_SCALES=False, samples_per_task=1)  # nothing is interpolated
