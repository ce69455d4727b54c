"""The Transformation Bridge: carries a ViT block's tokens across to the side network (paper section 3.3, eq. 2)."""

from __future__ import annotations

import functools

import torch
from torch import nn

from hst.layers.autocast import no_autocast


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
        self._kept: dict[tuple[object, ...], torch.Tensor] = {}

    def project(self, tokens: torch.Tensor, block: int) -> torch.Tensor:
        """All tokens of a ViT block's output (B, N, embed_dim) in the stage's width, (B, N, width).

        Args:
            tokens: registers, prefix tokens, patches: N = M + P + h*w.
            block: which of the stage's taps this is, from 0.
        """
        return self.proj[block if len(self.proj) > 1 else 0](tokens)

    def forward(
        self,
        projected: torch.Tensor,
        block: int,
        *,
        num_prefix_tokens: int,
        grid: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stage's view of what `project` returned.

        Args:
            projected: (B, M + P + h*w, width).
            block: as there.
            num_prefix_tokens: P, dropped.
            grid: (h, w) of the patches.

        Returns:
            Patch features (B, h, w, width); normalised registers (B, M, width) or None.
        """
        registers = self.register_norm[block](projected[:, : self.num_registers]) if self.num_registers else None
        return projected[:, self.num_registers + num_prefix_tokens :].unflatten(1, grid), registers  # B(hw)C -> BhwC

    def global_token(
        self, projected: torch.Tensor, num_prefix_tokens: int, grid: tuple[int, int], size: tuple[int, int]
    ) -> torch.Tensor:
        """The mean of the patch features interpolated to ``size``, without those: (B, 1, width). Other arguments as of
        `forward`."""
        tokens = projected[:, self.num_registers + num_prefix_tokens :]
        weights = mean_weights(grid, size)
        if max(weights) - min(weights) < 1e-12:
            return tokens.mean(1, keepdim=True)
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        with no_autocast(tokens):
            return (self._on_device(weights, grid, size, tokens) @ tokens).to(projected.dtype)

    def _on_device(
        self, weights: list[float], grid: tuple[int, int], size: tuple[int, int], like: torch.Tensor
    ) -> torch.Tensor:
        """(1, h * w), kept, but for what is made while a graph is traced and belongs to that."""
        key = (grid, size, like.device, like.dtype)
        found = None if torch.compiler.is_compiling() else self._kept.get(key)
        if found is None:
            with torch.inference_mode(False):  # a model that is trained later uses it, too
                found = torch.tensor(weights, device=like.device, dtype=like.dtype)[None]
            if not torch.compiler.is_compiling():
                self._kept[key] = found
        return found


@functools.cache
def mean_weights(grid: tuple[int, int], size: tuple[int, int]) -> list[float]:
    """How much each token of a grid (h, w) counts in the mean of the map (H, W) that it is interpolated to, (h * w).

    All the same where H is a multiple of h, as W of w, or half of it; bilinear interpolation treats rows and columns
    apart, so that elsewhere, too, it is a product of two lists.
    """
    rows, columns = (_line_weights(old, new) for old, new in zip(grid, size, strict=True))
    return [row * column for row in rows for column in columns]


def _line_weights(old: int, new: int) -> list[float]:
    """The same of a line, interpolated as torch does with ``align_corners=False``."""
    weights = [0.0] * old
    for i in range(new):
        place = max((i + 0.5) * old / new - 0.5, 0.0)
        left = min(int(place), old - 1)
        right = min(left + 1, old - 1)
        weights[left] += (1 - (place - left)) / new
        weights[right] += (place - left) / new
    return weights
