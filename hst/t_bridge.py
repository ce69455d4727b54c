"""The Transformation Bridge: carries a ViT block's tokens across to the side network (paper section 3.3, eq. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class TBridge(nn.Module):
    """Projects every token of the tapped ViT blocks of one stage from the ViT's width to the stage's.

    A stage's blocks share one linear (``T_Bridge_i`` in the released code), or one each with ``shared=False``; each
    has its own LayerNorm on the projected registers (``m_proj_norm``). The released code interpolates before it
    projects; both orders are equal, and projecting first costs less.
    """

    def __init__(self, embed_dim: int, width: int, *, num_blocks: int, num_registers: int, shared: bool) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Linear(embed_dim, width) for _ in range(1 if shared else num_blocks))
        self.register_norm = nn.ModuleList(
            nn.LayerNorm(width, eps=1e-5) for _ in range(num_blocks if num_registers else 0)
        )
        self.num_registers = num_registers

    def forward(
        self,
        tokens: torch.Tensor,
        block: int,
        *,
        num_prefix_tokens: int,
        grid: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One ViT block's output -> the stage's view of it.

        Args:
            tokens: registers, prefix tokens, patches of a ViT block: (B, M + P + h*w, embed_dim).
            block: which of the stage's taps this is, from 0.
            num_prefix_tokens: P, dropped.
            grid: (h, w) of the patches.
            size: (H, W) of the side tokens.

        Returns:
            Patch features (B, H, W, width), interpolated; projected, normalised registers (B, M, width) or None.
        """
        x = self.proj[block if len(self.proj) > 1 else 0](tokens)
        registers = self.register_norm[block](x[:, : self.num_registers]) if self.num_registers else None
        patches = x[:, self.num_registers + num_prefix_tokens :].unflatten(1, grid)  # B(hw)C -> BhwC
        if grid != size:
            nchw = F.interpolate(patches.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
            patches = nchw.permute(0, 2, 3, 1)
        return patches, registers
