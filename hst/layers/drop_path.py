"""Stochastic depth (arXiv 1603.09382) with draws that do not depend on how a batch is split over workers.

The residual branches of a model are counted: two for every ViT block (attention, MLP), then two for every side block
(cross-attention, MLP). The caller draws one scale per branch and sample of the *global* batch and hands each
worker its columns.
"""

from __future__ import annotations

import torch


def path_rates(drop_path: float, vit_depth: int, num_side_blocks: int) -> torch.Tensor:
    """Drop rates of all branches, float64 (2 * vit_depth + 2 * num_side_blocks,).

    As in the released code each network has its own linear ramp from 0 at its first block to ``drop_path`` at its last.
    """
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path!r}: expected a rate in [0, 1)")
    ramps = [torch.linspace(0, drop_path, n, dtype=torch.float64) for n in (vit_depth, num_side_blocks)]
    return torch.cat(ramps).repeat_interleave(2)


def draw_path_scales(rates: torch.Tensor, batch_size: int, generator: torch.Generator) -> torch.Tensor | None:
    """0 where a sample drops a branch, 1 / (1 - rate) where it keeps it: float32 (paths, B); None without rates."""
    if not bool((rates > 0).any()):
        return None
    keep = 1 - rates[:, None]
    draws = torch.rand(len(rates), batch_size, generator=generator, dtype=torch.float64)
    return ((draws < keep) / keep).float()


def add_branch(x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """x + scale * branch for (B, ...) and per-sample scales (B,); without scales a plain residual."""
    if scale is None:
        return x + branch
    return x + branch * scale.to(branch.dtype).view(-1, *[1] * (branch.dim() - 1))
