"""Top-1 accuracy and the confusion matrix behind it, counted exactly over any number of workers."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.evaluation.metric import Group


class TopOne:
    """Counts predictions against labels."""

    name = "top1"

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        """(label, prediction)."""

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Logits (B, classes) and labels (B,) in [0, classes); no host synchronisation."""
        classes = self.counts.shape[0]
        cells = targets.to(outputs.device) * classes + outputs.argmax(1)
        self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))  # bincount would wait for a GPU

    def merge(self, group: Group) -> None:
        """Sums the counts over all workers, in place."""
        group.all_reduce(self.counts)

    @property
    def seen(self) -> int:
        """Number of samples that were counted."""
        return int(self.counts.sum())

    def compute(self) -> dict[str, float]:
        """``{"top1": fraction in [0, 1]}``; ValueError where nothing was counted."""
        total = self.seen
        if total == 0:
            raise ValueError("top1 of no samples: the split that was evaluated is empty")
        return {self.name: int(self.counts.diagonal().sum()) / total}

    def details(self) -> dict[str, Any]:
        """``{"confusion": counts as nested lists}``."""
        return {"confusion": self.counts.tolist()}
