"""A Side block: cross-attention to meta tokens, injection of patch features, MLP (paper section 3.4, eq. 3-5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hst.gpu.fused_side_block import can_run, fused_side_block
from hst.layers.autocast import product_dtype
from hst.layers.drop_path import add_branch


class MetaCrossAttention(nn.Module):
    """Multi-head cross-attention from side tokens to a handful of meta tokens (eq. 3).

    With T meta tokens, the query and output projections are folded into per-sample matrices with heads * T columns.
    This is exact for any T and saves the maps of queries, values and per-head outputs of all side tokens.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, meta: torch.Tensor) -> torch.Tensor:
        """Side tokens (B, L, C) and meta tokens (B, T, C) -> (B, L, C)."""
        keys, bias, values = self.folded(meta)
        scores = torch.baddbmm(bias[:, None], x, keys)  # (B, L, heads * T)
        weights = scores.unflatten(-1, (self.num_heads, -1)).softmax(-1).flatten(2)
        return torch.baddbmm(self.proj.bias.to(weights.dtype).expand(1, 1, -1), weights, values)

    def folded(self, meta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Fold the projections with meta tokens (B, T, C).

        Returns keys (B, C, heads * T) that map side tokens to scores, the scores' bias (B, heads * T), and values
        (B, heads * T, C) that map attention weights to side tokens.
        """
        heads = self.num_heads
        k = self.k(meta).unflatten(-1, (heads, -1))  # (B, T, heads, d)
        v = self.v(meta).unflatten(-1, (heads, -1))
        keys = torch.einsum("bthd,hdc->bcht", k, self.q.weight.unflatten(0, (heads, -1))).flatten(2) * self.scale
        bias = torch.einsum("bthd,hd->bht", k, self.q.bias.unflatten(0, (heads, -1))).flatten(1) * self.scale
        values = torch.einsum("bthd,chd->bhtc", v, self.proj.weight.unflatten(1, (heads, -1))).flatten(1, 2)
        return keys, bias, values


class SideBlock(nn.Module):
    """The released code's ``M_Block``. Without meta tokens (``cross_attention=False``) it leaves out eq. 3."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, *, cross_attention: bool, inject: bool) -> None:
        super().__init__()
        if cross_attention:
            self.norm1 = nn.LayerNorm(width, eps=1e-6)
            self.attn = MetaCrossAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.cross_attention = cross_attention
        self.inject = inject

    def forward(
        self,
        x: torch.Tensor,
        meta: torch.Tensor | None,
        patches: torch.Tensor,
        path_scales: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns side tokens (B, H, W, C).

        Args:
            x: side tokens (B, H, W, C).
            meta: meta tokens (B, T, C), or None without cross-attention.
            patches: patch features on the ViT's grid (B, h, w, C).
            path_scales: drop-path scales of both branches (2, B), or None.
        """
        if meta is not None and self.is_fused(x, meta.shape[1]):
            return self._fused(x, meta, patches, path_scales)
        attn_scale, mlp_scale = (None, None) if path_scales is None else path_scales
        if self.cross_attention:
            assert meta is not None
            attended = self.attn(self.norm1(x).flatten(1, 2), meta).unflatten(1, x.shape[1:3])
            x = add_branch(x, attended, attn_scale)
        if self.inject:
            x = x + resized(patches, (x.shape[1], x.shape[2]))
        return add_branch(x, self.mlp(self.norm2(x)), mlp_scale)

    def is_fused(self, x: torch.Tensor, num_meta_tokens: int) -> bool:
        """Whether kernels compute side tokens like these; they keep only their inputs for the backward pass."""
        return self.inject and self.cross_attention and can_run(x, self.attn.num_heads, num_meta_tokens)

    def _fused(
        self, x: torch.Tensor, meta: torch.Tensor, patches: torch.Tensor, path_scales: torch.Tensor | None
    ) -> torch.Tensor:
        fc1, _, fc2 = self.mlp
        norm1, norm2, proj = self.norm1, self.norm2, self.attn.proj
        vectors = [norm1.weight, norm1.bias, proj.bias, norm2.weight, norm2.bias, fc2.bias]
        return fused_side_block(
            x,
            self.attn.folded(meta),
            patches,
            path_scales,
            torch.stack(vectors),  # type: ignore[arg-type]
            (fc1.weight, fc1.bias, fc2.weight),  # type: ignore[arg-type]
            heads=self.attn.num_heads,
            dtype=product_dtype(x),
        )


def resized(patches: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Patch features (B, h, w, C), interpolated to the side tokens' size (H, W)."""
    if patches.shape[1:3] == size:
        return patches
    nchw = F.interpolate(patches.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return nchw.permute(0, 2, 3, 1)
