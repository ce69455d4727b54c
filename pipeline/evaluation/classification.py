"""Top-1 accuracy and the confusion matrix behind it, counted exactly over any number of workers."""

from __future__ import annotations

import torch


class TopOne:
    """Counts predictions against labels; `merge_tensor` is summed over workers before `compute`."""

    name = "top1"

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Logits (B, classes) and labels (B,) in [0, classes); no host synchronisation."""
        classes = self.counts.shape[0]
        cells = labels.to(logits.device) * classes + logits.argmax(1)
        self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))  # bincount asks a GPU how many there are

    @property
    def merge_tensor(self) -> torch.Tensor:
        """The counts, (label, prediction), to be summed in place over workers."""
        return self.counts

    def compute(self) -> dict[str, float]:
        """``{"top1": fraction in [0, 1]}``; ValueError where nothing was counted."""
        total = int(self.counts.sum())
        if total == 0:
            raise ValueError("top1 of no samples: the split that was evaluated is empty")
        return {self.name: int(self.counts.diagonal().sum()) / total}


METRICS = {"classification": TopOne}
