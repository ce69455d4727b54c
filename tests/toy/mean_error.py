"""A metric: the mean absolute error."""

from typing import Any

import torch

from pipeline.evaluation.metric import Group


class MeanError:
    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the errors, and how many

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        errors = (outputs.double() - targets).abs()
        self.sums += torch.stack([errors.sum(), torch.ones_like(errors).sum()])

    def merge(self, group: Group) -> None:
        group.all_reduce(self.sums)

    @property
    def seen(self) -> int:
        return int(self.sums[1])

    def compute(self) -> dict[str, float]:
        return {"mae": float(self.sums[0] / self.sums[1])}

    def details(self) -> dict[str, Any]:
        return {"error_sum": float(self.sums[0])}
