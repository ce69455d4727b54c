"""One process of `test_batch_norm.py`: ``python global_batch_norm_rank.py RANK WORLD DIRECTORY CASE...``.

Runs its share of the batches in ``DIRECTORY/CASE.pt`` through a GlobalBatchNorm and saves the results beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hst.layers.batch_norm import GlobalBatchNorm


def run(case: dict[str, Any], rows: slice) -> dict[str, torch.Tensor]:
    """Two training steps on these rows of the batches, then one evaluation."""
    norm = GlobalBatchNorm(case["batches"][0].shape[1], **case["kwargs"]).double()
    norm.load_state_dict(case["state"])
    out: dict[str, torch.Tensor] = {}
    for step, (batch, weights) in enumerate(zip(case["batches"], case["weights"], strict=True)):
        x = batch[rows].clone().requires_grad_()
        y = norm(x)
        (y * weights[rows]).sum().backward()
        assert x.grad is not None
        out |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
    out |= {f"d{name}": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    out |= dict(norm.named_buffers())
    return out | {"eval": norm.eval()(case["batches"][0][rows])}


def main() -> None:
    rank, world, folder, names = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for name in names:
        case = torch.load(folder / f"{name}.pt", weights_only=True)
        first, last = case["splits"][rank], case["splits"][rank + 1]
        torch.save(run(case, slice(first, last)), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
