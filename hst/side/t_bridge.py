"""The Transformation Bridge: projects a ViT block's tokens for the side network (paper section 3.3, eq. 2)."""

from __future__ import annotations

import functools

import torch
from torch import nn

from hst.layers.autocast import no_autocast


class TBridge(nn.Module):
    """Projects every token of the tapped ViT blocks of one stage from the ViT's width to the stage's.

    A stage's blocks share one linear (``T_Bridge_i`` in the released code), or have one each with ``shared=False``.
    Each block has its own LayerNorm on the projected registers (``m_proj_norm``). The released code interpolates before
    it projects; both orders give the same result, and projecting first costs less.
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
            block: index among the stage's taps, from 0.
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
        """Split what `project` returned, and normalise the registers.

        Args:
            projected: (B, M + P + h*w, width).
            block: index among the stage's taps, from 0.
            num_prefix_tokens: P, the number of tokens to drop.
            grid: (h, w) of the patches.

        Returns:
            Patch features (B, h, w, width); normalised registers (B, M, width) or None.
        """
        registers = self.register_norm[block](projected[:, : self.num_registers]) if self.num_registers else None
        return projected[:, self.num_registers + num_prefix_tokens :].unflatten(1, grid), registers  # B(hw)C -> BhwC

    def global_token(
        self, projected: torch.Tensor, num_prefix_tokens: int, grid: tuple[int, int], size: tuple[int, int]
    ) -> torch.Tensor:
        """The mean (B, 1, width) of the patch features interpolated to ``size``, computed without interpolating. The
        other arguments are those of `forward`."""
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
        """The weights as a tensor (1, h * w). It is cached, unless it belongs to a graph that is being traced."""
        key = (grid, size, like.device, like.dtype)
        found = None if torch.compiler.is_compiling() else self._kept.get(key)
        if found is None:
            with torch.inference_mode(False):  # training may use the cached tensor later
                found = torch.tensor(weights, device=like.device, dtype=like.dtype)[None]
            if not torch.compiler.is_compiling():
                self._kept[key] = found
        return found


@functools.cache
def mean_weights(grid: tuple[int, int], size: tuple[int, int]) -> list[float]:
    """The weight of each token of a grid (h, w) in the mean of the map (H, W) interpolated from it, h * w numbers.

    Bilinear interpolation is separable, so each is a row's weight times a column's. All are equal if 2H is a multiple
    of h and 2W a multiple of w.
    """
    rows, columns = (_line_weights(old, new) for old, new in zip(grid, size, strict=True))
    return [row * column for row in rows for column in columns]


def _line_weights(old: int, new: int) -> list[float]:
    """The same for one line, interpolated as torch does with ``align_corners=False``."""
    weights = [0.0] * old
    for i in range(new):
        place = max((i + 0.5) * old / new - 0.5, 0.0)
        left = min(int(place), old - 1)
        right = min(left + 1, old - 1)
        weights[left] += (1 - (place - left)) / new
        weights[right] += (place - left) / new
    return weights
