"""Stochastic depth (arXiv 1603.09382) with draws that do not depend on how a batch is split over workers.

A model's residual branches are numbered: two for every ViT block (attention, MLP), then two for every side block
(cross-attention, MLP). The caller draws one scale per branch and sample of the *global* batch and gives each worker its
columns.
"""

from __future__ import annotations

import torch


def path_rates(drop_path: float, vit_depth: int, num_side_blocks: int) -> torch.Tensor:
    """Drop rates of all branches, float64 (2 * vit_depth + 2 * num_side_blocks,).

    As in the released code, the rates of each network rise linearly from 0 at its first block to ``drop_path`` at its
    last.
    """
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path!r}: expected a rate in [0, 1)")
    ramps = [torch.linspace(0, drop_path, n, dtype=torch.float64) for n in (vit_depth, num_side_blocks)]
    return torch.cat(ramps).repeat_interleave(2)


def draw_path_scales(rates: torch.Tensor, batch_size: int, generator: torch.Generator) -> torch.Tensor | None:
    """Scales, float32 (paths, B): 0 where a sample drops a branch, else 1 / (1 - rate). None if all rates are 0."""
    if not bool((rates > 0).any()):
        return None
    keep = 1 - rates[:, None]
    draws = torch.rand(len(rates), batch_size, generator=generator, dtype=torch.float64)
    return ((draws < keep) / keep).float()


def add_branch(x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """x + scale * branch, for (B, ...) and scales (B,) of the samples; x + branch without scales."""
    if scale is None:
        return x + branch
    return x + branch * scale.to(branch.dtype).view(-1, *[1] * (branch.dim() - 1))
