"""A task model: the extractor and a head on one shared frozen backbone."""

from __future__ import annotations

import torch
from torch import nn

from hst.backbone import Backbone
from hst.config import HEAD_INPUTS, MEMORY_MODES, HSNConfig
from hst.heads.classification import ClassificationHead
from hst.randomness import seeded
from hst.side.extractor import HSTExtractor


class TaskModel(nn.Module):
    """What one task trains. ``state_dict()`` is the light checkpoint's content: nothing of the frozen ViT is in it."""

    def __init__(self, extractor: HSTExtractor, head: ClassificationHead) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    @property
    def backbone(self) -> Backbone:
        """The shared frozen ViT; not a submodule."""
        return self.extractor.backbone

    @property
    def hsn(self) -> HSNConfig:
        """The side network's configuration, resolved."""
        return self.extractor.config

    @property
    def memory(self) -> str:
        """What a training step keeps: one of `hst.config.MEMORY_MODES`, which can be set at any time."""
        return self.extractor.memory

    @memory.setter
    def memory(self, mode: str) -> None:
        if mode not in MEMORY_MODES:
            raise ValueError(f"memory={mode!r}: expected one of {', '.join(MEMORY_MODES)}")
        self.extractor.memory = mode

    @property
    def num_classes(self) -> int:
        """Columns of the logits."""
        return self.head.linear.out_features

    @property
    def head_input(self) -> str:
        """One of `HEAD_INPUTS`."""
        return "side" if self.head.class_token_norm is None else "side+cls"

    def forward(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        path_scales: torch.Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch.

        Args:
            images: normalised, (B, 3, H, W).
            targets: labels (B,), int64, or soft targets (B, classes).
            path_scales: drop-path scales (paths, B), drawn by `hst.layers.drop_path.draw_path_scales`, or None.
            label_smoothing: of labels, in [0, 1); soft targets are taken as they are.

        Returns:
            ``loss`` (scalar, the batch mean) and ``logits`` (B, classes), detached.
        """
        logits = self.logits(images, path_scales)
        return {
            **self.head.losses(logits, targets, label_smoothing=label_smoothing),
            "logits": logits.detach(),
        }

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, classes), with evaluation statistics and without drop-path."""
        was_training = self.training
        self.eval()
        try:
            return self.logits(images, None)
        finally:
            self.train(was_training)

    def path_rates(self, drop_path: float) -> torch.Tensor:
        """Drop rates of all residual branches for a recipe's ``drop_path``."""
        return self.extractor.path_rates(drop_path)

    def logits(self, images: torch.Tensor, path_scales: torch.Tensor | None) -> torch.Tensor:
        """Of normalised images (B, 3, H, W) and drop-path scales (paths, B) or None: (B, classes)."""
        pyramid, class_token = self.extractor(images, path_scales, class_token=self.head_input == "side+cls")
        return self.head(pyramid, class_token)


def build_task_model(
    backbone: Backbone,
    hsn: HSNConfig,
    *,
    num_classes: int,
    head_input: str = "side",
    seed: int = 0,
    task: str = "task",
) -> TaskModel:
    """A fresh task model on ``backbone``, its parameters a function of (seed, task).

    Args:
        head_input: ``"side"`` (the paper) or ``"side+cls"`` (beside it the ViT's final class token).

    Raises:
        ValueError: fewer than two classes, an unknown head input, a class token that the ViT has not, depths that do
            not fit.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: a classification task has at least 2")
    if head_input not in HEAD_INPUTS:
        raise ValueError(f"head_input={head_input!r}: expected one of {', '.join(HEAD_INPUTS)}")
    if head_input == "side+cls" and not backbone.has_class_token:
        raise ValueError(f"head_input='side+cls': backbone {backbone.name!r} has no class token; use head_input='side'")
    with seeded(seed, task, "init"):
        extractor = HSTExtractor(backbone, hsn)
        class_token_dim = backbone.embed_dim if head_input == "side+cls" else 0
        head = ClassificationHead(hsn.widths[-1], num_classes, class_token_dim=class_token_dim)
    return TaskModel(extractor, head)
