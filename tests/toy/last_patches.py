"""A method: the frozen ViT's last patches, through one trained projection. Tasks of it cannot share a pass."""

from typing import Any

import torch
from torch import nn

from hst.backbone import Backbone, SharedBackbone


class LastPatches(nn.Module):
    packable, memory, widths = False, "speed", (8, 8, 8, 8)

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = SharedBackbone(backbone)  # so it is neither saved nor copied with the task
        self.proj = nn.Linear(backbone.embed_dim, self.widths[-1])

    @classmethod
    def build(cls, backbone: Backbone, config: Any) -> "LastPatches":
        return cls(backbone)

    @property
    def backbone(self) -> Backbone:
        return self._backbone.backbone

    def spec(self) -> dict[str, Any]:
        return {"name": "last_patches"}

    def path_rates(self, drop_path: float) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.float64)

    def forward(self, images: torch.Tensor, path_scales: torch.Tensor | None, *, class_token: bool) -> Any:
        last = self.backbone.depth - 1
        vit = self.backbone(images, taps=[last], class_token=class_token)
        patches = vit.tokens[last][:, vit.num_prefix_tokens :].unflatten(1, vit.grid)
        return [self.proj(patches)] * 4, vit.class_token  # one map stands for the four strides
