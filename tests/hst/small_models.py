"""Small models for the tests of ``hst/``: a ViT of 4 blocks, width 24, 8 px patches, 32 px; all weights are random."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from hst.backbone import Backbone, backbone_identity
from hst.config import HSNConfig

CLASSIFICATION: dict[str, Any] = {
    "kind": "classification",
    "measure": {"name": "top1", "unit": "%", "higher_is_better": True},
}
"""What a checkpoint's header says of every classification task."""
SMALL_HSN = HSNConfig(widths=(8, 12, 16, 20), num_heads=(2, 3, 4, 5))


def small_vit(*, seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: Any) -> VisionTransformer:
    """A timm ViT with random norms, class token and position embeddings, because ones and zeros would hide errors."""
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "mlp_ratio": 2}
    vit = VisionTransformer(**{**defaults, "num_classes": 0, **kwargs}).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            mean = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            std = parameter[0].numel() ** -0.5 if parameter.dim() in (2, 4) else 0.2
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return vit


def small_backbone(*, seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Backbone:
    """`small_vit` as a frozen backbone with its true identity."""
    vit = small_vit(seed=seed, dtype=dtype, **kwargs)
    return Backbone("small", vit, backbone_identity(vit.state_dict()))
