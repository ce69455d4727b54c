"""HST's feature extractor: the frozen ViT with a task's registers and norms, and the side network beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hst.backbone import Backbone, SharedBackbone
from hst.config import HSNConfig
from hst.gpu.beside import Beside, is_possible
from hst.layers.drop_path import path_rates
from hst.protocols import Features, Pyramid
from hst.side.by_task import ByTask, joined_scales
from hst.side.hsn import HSN
from hst.side.meta_register import BlockNorms, MetaRegister
from hst.side.stacked import SideInput, stacked_side


class HSTExtractor(nn.Module):
    """Images -> a feature pyramid at strides 4, 8, 16, 32.

    The backbone is not a submodule: ``parameters()`` and ``state_dict()`` are exactly the task's, and moving or saving
    the task never touches the ViT that other tasks share.
    """

    packable = True

    def __init__(self, backbone: Backbone, config: HSNConfig) -> None:
        super().__init__()
        self.memory = "speed"
        """One of `hst.config.MEMORY_MODES`; it changes gradients by no more than rounding."""
        self.beside = True
        """On a GPU, predict with the side network on its own stream (`hst.gpu.beside`)."""
        self.config = config.resolve(backbone.depth)
        taps = self.config.taps(backbone.depth)
        self._backbone = SharedBackbone(backbone)
        self.taps = frozenset(tap for stage in taps for tap in stage)
        self.block_norms = BlockNorms(backbone.block_norms()) if config.tune_backbone_norms else None
        self.meta_register = None
        if config.num_registers:
            self.meta_register = MetaRegister(sorted(self.taps), config.num_registers, backbone.embed_dim)
            for tokens in self.meta_register.parameters():
                nn.init.xavier_uniform_(tokens)
        self.side = HSN(self.config, embed_dim=backbone.embed_dim, taps=taps)

    @classmethod
    def build(cls, backbone: Backbone, config: Mapping[str, Any]) -> HSTExtractor:
        """See `hst.protocols.Method`; ``config`` has fields of `HSNConfig`."""
        return cls(backbone, HSNConfig.from_dict(config))

    @property
    def backbone(self) -> Backbone:
        """The shared frozen ViT."""
        return self._backbone.backbone

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the pyramid's four maps."""
        return self.config.widths

    def spec(self) -> dict[str, Any]:
        """``{"name": "hst", ...}`` with the resolved `HSNConfig`."""
        return {"name": "hst", **self.config.to_dict()}

    def sharing_key(self) -> Hashable:
        """Tasks share a pass through the ViT if they tap the same blocks with equally many registers."""
        return self.taps, self.config.num_registers, self.memory == "memory"

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

    @staticmethod
    def forward_together(
        methods: Sequence[HSTExtractor],
        images: Sequence[torch.Tensor],
        path_scales: Sequence[torch.Tensor | None],
        *,
        class_token: bool,
        stacked: bool,
    ) -> list[Features]:
        """See `hst.protocols.Method`: one pass through the ViT for all samples, then each task's side network."""
        backbone, first = methods[0].backbone, methods[0]
        counts = [len(batch) for batch in images]
        by_task = ByTask(
            [one.meta_register for one in methods if one.meta_register is not None],
            [backbone.block_norms().__getitem__ if one.block_norms is None else one.block_norms for one in methods],
            counts,
            images[0].device,
        )
        split = 2 * backbone.depth
        in_vit = [None if scales is None else scales[:split] for scales in path_scales]
        vit = backbone(
            torch.cat(list(images)),
            taps=first.taps,
            registers=by_task.registers if first.meta_register is not None else None,
            norms=by_task.norms,
            path_scales=joined_scales(in_vit, counts, split, images[0].device),
            class_token=class_token,
            recompute=first.memory == "memory",
        )
        tokens = {tap: value.split(counts) for tap, value in vit.tokens.items()}
        inputs = [
            SideInput(
                batch,
                dataclasses.replace(vit, tokens={tap: parts[i] for tap, parts in tokens.items()}, class_token=None),
                None if scales is None else scales[split:],
            )
            for i, (batch, scales) in enumerate(zip(images, path_scales, strict=True))
        ]
        class_tokens = [None] * len(methods) if vit.class_token is None else vit.class_token.split(counts)
        return list(zip(_pyramids(methods, inputs, stacked), class_tokens, strict=True))


def _pyramids(methods: Sequence[HSTExtractor], inputs: Sequence[SideInput], stacked: bool) -> list[Pyramid]:
    """The pyramids of each task's own samples. If ``stacked``, side networks that are alike are computed as one."""
    found: dict[int, Pyramid] = {}
    for places in _alike(methods, inputs) if stacked else [[i] for i in range(len(methods))]:
        if len(places) == 1:
            alone = methods[places[0]]
            found[places[0]] = alone.side(*inputs[places[0]], recompute=alone.memory != "speed")
        else:
            pyramids = stacked_side([methods[i].side for i in places], [inputs[i] for i in places])
            found.update(zip(places, pyramids, strict=True))
    return [found[i] for i in range(len(methods))]


def _alike(methods: Sequence[HSTExtractor], inputs: Sequence[SideInput]) -> list[list[int]]:
    """The indices of side networks, in groups that are computed as one.

    The side networks of a group have one shape, equally many images and mode ``speed``.
    """
    found: dict[object, list[int]] = {}
    for i, (one, own) in enumerate(zip(methods, inputs, strict=True)):
        key = (one.config, len(own.images), one.training) if one.memory == "speed" else i
        found.setdefault(key, []).append(i)
    return list(found.values())
