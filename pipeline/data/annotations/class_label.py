"""The label of a classification task: the number of a class, from 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class ClassLabel:
    """A `pipeline.data.annotations.annotation.Annotation`."""

    has_classes = True

    def parse(self, text: str) -> int:
        """A whole number. (Layouts of raw data also know classes by their names, and number those themselves.)"""
        if not text.isdecimal():
            raise ValueError(f"label {text!r}: expected the number of a class, from 0")
        return int(text)

    def fault(self, label: Any, class_names: Sequence[str]) -> str:
        """Why a label is not the number of a class; empty if it is."""
        if type(label) is not int:
            return f"label {label!r} is no whole number"
        if not 0 <= label < len(class_names):
            return f"label {label} is out of range; {len(class_names)} classes: 0 to {len(class_names) - 1}"
        return ""

    def members(self, label: int) -> dict[str, bytes]:
        """``cls``, as an ASCII integer (WebDataset's custom)."""
        return {"cls": str(label).encode()}

    def stratum(self, label: int) -> int:
        """The class."""
        return label

    def collate(self, labels: Sequence[int]) -> torch.Tensor:
        """int64 (b,)."""
        return torch.tensor(labels, dtype=torch.int64)
