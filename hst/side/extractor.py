"""HST's feature extractor: the frozen ViT with a task's registers and norms, and the side network beside it."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from hst.backbone import Backbone
from hst.config import HSNConfig
from hst.gpu.beside import Beside, is_possible
from hst.layers.drop_path import path_rates
from hst.side.hsn import HSN
from hst.side.meta_register import BlockNorms, MetaRegister


class HSTExtractor(nn.Module):
    """Images -> a feature pyramid at strides 4, 8, 16, 32.

    The backbone is not a submodule: ``parameters()`` and ``state_dict()`` are exactly the task's, and moving or saving
    the task never touches the ViT that other tasks share.
    """

    def __init__(self, backbone: Backbone, config: HSNConfig) -> None:
        super().__init__()
        self.memory = "speed"
        """One of `hst.config.MEMORY_MODES`; it changes gradients by no more than rounding."""
        self.beside = True
        """On a GPU, predict with the side network on its own stream (`hst.gpu.beside`)."""
        self.config = config.resolve(backbone.depth)
        taps = self.config.taps(backbone.depth)
        self._backbone = (backbone,)
        self.taps = frozenset(tap for stage in taps for tap in stage)
        self.block_norms = BlockNorms(backbone.block_norms()) if config.tune_backbone_norms else None
        self.meta_register = None
        if config.num_registers:
            self.meta_register = MetaRegister(sorted(self.taps), config.num_registers, backbone.embed_dim)
            for tokens in self.meta_register.parameters():
                nn.init.xavier_uniform_(tokens)
        self.side = HSN(self.config, embed_dim=backbone.embed_dim, taps=taps)

    @property
    def backbone(self) -> Backbone:
        """The shared frozen ViT."""
        return self._backbone[0]

    def path_rates(self, drop_path: float) -> torch.Tensor:
        """Drop rates of all residual branches, the ViT's first; see `hst.layers.drop_path`."""
        return path_rates(drop_path, self.backbone.depth, self.side.num_blocks)

    def forward(
        self, images: torch.Tensor, path_scales: torch.Tensor | None = None, *, class_token: bool = False
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Normalised images (B, 3, H, W), path scales (paths, B) -> four maps (B, H/s, W/s, C), class token or None."""
        split = 2 * self.backbone.depth
        beside = Beside(images.device) if self.beside and is_possible(images) else None
        vit = self.backbone(
            images,
            taps=self.taps,
            registers=self.meta_register,
            norms=self.block_norms,
            path_scales=None if path_scales is None else path_scales[:split],
            class_token=class_token,
            recompute=self.memory == "memory",
            tapped=None if beside is None else beside.mark,
        )
        scales = None if path_scales is None else path_scales[split:]
        if beside is None:
            return self.side(images, vit, scales, recompute=self.memory != "speed"), vit.class_token
        with beside.running():
            pyramid = self.side(images, dataclasses.replace(vit, tokens=beside.waiting(vit.tokens)), scales)
        return pyramid, vit.class_token
