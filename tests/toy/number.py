"""An annotation: one number an image."""

import math
from typing import Any

import torch


class Number:
    has_classes = False

    def parse(self, text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"label {text!r}: expected a finite number")
        return value

    def fault(self, label: Any, class_names: Any) -> str:
        return "" if isinstance(label, float) and math.isfinite(label) else f"label {label!r} is no finite number"

    def members(self, label: float) -> dict[str, bytes]:
        return {"number": repr(label).encode()}

    def stratum(self, label: float) -> None:
        return None  # a drawn val takes a tenth of all samples

    def collate(self, labels: Any) -> torch.Tensor:
        return torch.tensor(labels, dtype=torch.float64)
