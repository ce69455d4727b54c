"""The classification head: mean of the last stage's tokens, BatchNorm without affine, Linear (released code)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hst.layers.batch_norm import batch_norm_without_affine


class ClassificationHead(nn.Module):
    """Pooled side features -> class logits; with ``class_token_dim`` also the ViT's class token, through its own norm.

    ``class_token_dim`` goes beyond the paper (``head_input="side+cls"``): the head sees what the ViT already knows.
    """

    def __init__(self, side_dim: int, num_classes: int, *, class_token_dim: int = 0) -> None:
        super().__init__()
        self.norm = batch_norm_without_affine(side_dim)
        self.class_token_norm = batch_norm_without_affine(class_token_dim) if class_token_dim else None
        self.linear = nn.Linear(side_dim + class_token_dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pyramid: list[torch.Tensor], class_token: torch.Tensor | None) -> torch.Tensor:
        """Pyramid maps (B, H, W, C), the last one is used; class token (B, D) or None -> logits (B, classes)."""
        features = self.norm(pyramid[-1].mean((1, 2)))
        if self.class_token_norm is not None:
            assert class_token is not None
            features = torch.cat([features, self.class_token_norm(class_token)], dim=1)
        return self.linear(features)

    @staticmethod
    def losses(logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0) -> dict[str, torch.Tensor]:
        """Mean cross-entropy of logits (B, classes) and labels (B,), or soft targets (B, classes).

        Soft targets are each sample's distribution over the classes; they are not smoothed once more.
        """
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if targets.dim() == 2:
            return {"loss": F.cross_entropy(logits, targets.to(logits.dtype))}
        return {"loss": F.cross_entropy(logits, targets, label_smoothing=label_smoothing)}
