"""The classification head: mean of the last stage's tokens, BatchNorm without affine, Linear (released code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hst.config import HEAD_INPUTS
from hst.layers.batch_norm import batch_norm_without_affine
from hst.protocols import Pyramid


class ClassificationHead(nn.Module):
    """Pooled side features -> class logits.

    With ``class_token_dim`` the head also sees the ViT's class token, through a norm of its own. That goes beyond the
    paper (``head_input="side+cls"``).
    """

    depends_on_shapes_alone = True

    def __init__(self, side_dim: int, num_classes: int, *, class_token_dim: int = 0) -> None:
        super().__init__()
        self.label_smoothing = 0.0
        """Share of a label that is spread over all classes in training, in [0, 1). The recipe sets it."""
        self.norm = batch_norm_without_affine(side_dim)
        self.class_token_norm = batch_norm_without_affine(class_token_dim) if class_token_dim else None
        self.linear = nn.Linear(side_dim + class_token_dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def build(cls, spec: Mapping[str, Any], widths: Sequence[int], embed_dim: int) -> ClassificationHead:
        """See `hst.protocols.Head`; ``{"kind": "classification", "input": "side" | "side+cls", "num_classes": ...}``.

        Raises:
            ValueError: other fields, fewer than two classes, or an unknown input.
        """
        if set(spec) != {"kind", "input", "num_classes"}:
            raise ValueError(f"a classification head has the fields kind, input and num_classes; found {sorted(spec)}")
        num_classes, head_input = spec["num_classes"], spec["input"]
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: a classification task has at least 2")
        if head_input not in HEAD_INPUTS:
            raise ValueError(f"head_input={head_input!r}: expected one of {', '.join(HEAD_INPUTS)}")
        return cls(widths[-1], num_classes, class_token_dim=embed_dim if head_input == "side+cls" else 0)

    @property
    def num_classes(self) -> int:
        """Columns of the logits."""
        return self.linear.out_features

    @property
    def needs_class_token(self) -> bool:
        """Whether its input is ``side+cls``."""
        return self.class_token_norm is not None

    def spec(self) -> dict[str, Any]:
        """What `build` takes."""
        head_input = "side+cls" if self.needs_class_token else "side"
        return {"kind": "classification", "input": head_input, "num_classes": self.num_classes}

    def forward(self, pyramid: Pyramid, class_token: torch.Tensor | None) -> torch.Tensor:
        """Pyramid maps (B, H, W, C), the last one is used; class token (B, D) or None -> logits (B, classes)."""
        features = self.norm(pyramid[-1].mean((1, 2)))
        if self.class_token_norm is not None:
            assert class_token is not None
            features = torch.cat([features, self.class_token_norm(class_token)], dim=1)
        return self.linear(features)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean cross-entropy of logits (B, classes) and labels (B,), or soft targets (B, classes).

        Soft targets are each sample's distribution over the classes; they are not smoothed once more.
        """
        logits = outputs.float() if outputs.dtype != torch.float64 else outputs
        if targets.dim() == 2:
            return {"loss": F.cross_entropy(logits, targets.to(logits.dtype))}
        return {"loss": F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)}

    def decode(self, outputs: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """For each image the probabilities of the classes, (classes,); the sizes do not matter."""
        return list(outputs.softmax(dim=1))
