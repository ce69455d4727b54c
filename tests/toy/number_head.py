"""A head: one number an image, from the mean of the last map, with the squared error as its loss."""

from typing import Any

import torch
from torch import nn


class NumberHead(nn.Module):
    needs_class_token = False
    depends_on_shapes_alone = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, 1)

    @classmethod
    def build(cls, spec: Any, widths: Any, embed_dim: int) -> "NumberHead":
        return cls(widths[-1])

    def spec(self) -> dict[str, Any]:
        return {"kind": "number"}

    def forward(self, pyramid: list[torch.Tensor], class_token: torch.Tensor | None) -> torch.Tensor:
        return self.linear(self.norm(pyramid[-1].mean((1, 2))))[:, 0]  # (B,)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        error = outputs - targets.to(outputs.dtype)
        return {"squared": error.square().mean(), "bias": 0.1 * error.mean().square()}

    def decode(self, outputs: torch.Tensor, sizes: Any) -> list[float]:
        return outputs.float().tolist()
