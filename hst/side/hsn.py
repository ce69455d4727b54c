"""The Hierarchical Side Network: four stages of Side blocks turn ViT block outputs into a feature pyramid (Fig. 2)."""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from hst.backbone import BlockOutputs
from hst.config import HSNConfig
from hst.layers.by_samples import by_samples
from hst.side.side_block import SideBlock
from hst.side.stem import ConvStem, Downsample
from hst.side.t_bridge import TBridge

SLICE_BYTES = 1 << 20
"""Size of a slice of a map on a CPU: what a stage's blocks compute from it then stays in a core's cache."""


class HSNStage(nn.Module):
    """One stage: the stem or downsampling, the bridge, the side blocks and the norm after them."""

    def __init__(self, config: HSNConfig, stage: int, *, embed_dim: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        width = config.widths[stage]
        self.taps = taps
        self.embed = ConvStem(width) if stage == 0 else Downsample(config.widths[stage - 1], width)
        self.bridge = TBridge(
            embed_dim,
            width,
            num_blocks=len(taps),
            num_registers=config.num_registers,
            shared=config.share_bridge,
        )
        self.blocks = nn.ModuleList(
            SideBlock(
                width,
                config.num_heads[stage],
                config.mlp_ratio,
                cross_attention=config.num_meta_tokens > 0,
                inject=config.fine_grained_injection,
            )
            for _ in taps
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.use_global_token = config.use_global_token
        self.num_meta_tokens = config.num_meta_tokens

    def forward(
        self, x: torch.Tensor, vit: BlockOutputs, path_scales: torch.Tensor | None, *, recompute: bool = False
    ) -> torch.Tensor:
        """The image (B, 3, S, S) or the last stage's tokens (B, 2H, 2W, C') -> (B, H, W, C); path scales (paths, B).

        With ``recompute`` the blocks keep only their inputs for the backward pass.
        """
        x = self.embed(x)
        projected = [self.bridge.project(vit.tokens[tap], i) for i, tap in enumerate(self.taps)]
        blocks = functools.partial(self._blocks, vit.num_prefix_tokens, vit.grid)
        scales = None if path_scales is None else path_scales.T
        if not recompute or self.blocks[0].is_fused(x, self.num_meta_tokens):  # type: ignore[operator]
            return blocks(x, scales, *projected)
        own = [self.bridge.register_norm, self.blocks, self.norm]
        return by_samples(blocks, own, [x, scales, *projected], samples=_samples(x))

    def _blocks(
        self,
        num_prefix_tokens: int,
        grid: tuple[int, int],
        x: torch.Tensor,
        path_scales: torch.Tensor | None,
        *projected: torch.Tensor,
    ) -> torch.Tensor:
        """Side tokens (B, H, W, C), path scales (B, paths), each block's ViT tokens (B, N, C) -> (B, H, W, C)."""
        for i, (block, tokens) in enumerate(zip(self.blocks, projected, strict=True)):
            size = (x.shape[1], x.shape[2])
            patches, registers = self.bridge(tokens, i, num_prefix_tokens=num_prefix_tokens, grid=grid)
            meta = [] if registers is None else [registers]
            if self.use_global_token:
                meta.append(self.bridge.global_token(tokens, num_prefix_tokens, grid, size))
            scales = None if path_scales is None else path_scales.T[2 * i : 2 * i + 2]
            x = block(x, torch.cat(meta, dim=1) if meta else None, patches, scales)
        return self.norm(x)


def _samples(x: torch.Tensor) -> int:
    """The number of samples of side tokens (B, H, W, C) that a stage's blocks process at once."""
    if x.device.type != "cpu":
        return x.shape[0]
    return max(1, SLICE_BYTES // max(1, x.shape[1:].numel() * x.element_size()))


class HSN(nn.Module):
    """All four stages. ``config`` must be resolved; ``taps`` come from `HSNConfig.taps`."""

    def __init__(self, config: HSNConfig, *, embed_dim: int, taps: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(HSNStage(config, s, embed_dim=embed_dim, taps=t) for s, t in enumerate(taps))
        init_side_network(self)

    @property
    def num_blocks(self) -> int:
        """Number of side blocks in all stages."""
        return sum(len(stage.taps) for stage in self.stages)  # type: ignore[misc,arg-type]

    def forward(
        self, images: torch.Tensor, vit: BlockOutputs, path_scales: torch.Tensor | None, *, recompute: bool = False
    ) -> list[torch.Tensor]:
        """Images (B, 3, H, W) and ViT block outputs -> four maps (B, H/s, W/s, C) at strides s = 4, 8, 16, 32."""
        pyramid = []
        x, first = images, 0
        for stage in self.stages:
            last = first + 2 * len(stage.taps)  # type: ignore[arg-type]
            x = stage(x, vit, None if path_scales is None else path_scales[first:last], recompute=recompute)
            pyramid.append(x)
            first = last
        return pyramid


def init_side_network(module: nn.Module) -> None:
    """Initialise as the released code. Linear: truncated normal, std 0.02. Conv: normal, std sqrt(2 / fan_out). Biases
    0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
