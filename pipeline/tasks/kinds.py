"""The measures of each kind of task: a metric's name, unit and direction. This module does not import torch.

`pipeline.kinds` says how a kind is trained and evaluated, under the same name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PERCENT = "%"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric of a kind of task."""

    name: str
    """Name of the metric in evaluation. Runs log it as ``val/<name>`` and ``test/<name>``."""
    unit: str = PERCENT
    """``%`` marks a fraction in [0, 1], which people see as per cent. Any other text follows a plain number."""
    higher_is_better: bool = True
    """The metric's direction, which search, comparison and promotion follow."""

    def gain(self, value: float) -> float:
        """The value, negated if lower is better, so that a larger gain always means a better result."""
        return value if self.higher_is_better else -value

    def shown(self, value: float) -> float:
        """The number that people see: a fraction in per cent, else the value itself."""
        return 100 * value if self.unit == PERCENT else value

    def cell(self, value: float | None, deviation: float | None = None) -> str:
        """The text of a table cell, without the unit: ``90.0``, ``90.0 ± 1.2``, or ``-`` if there is no value."""
        if value is None:
            return "-"
        return self._digits(value) + ("" if deviation is None else f" ± {self._digits(deviation)}")

    def text(self, value: float) -> str:
        """The text of a value in a sentence: ``90.0%``, or ``0.213 px``."""
        return f"{self._digits(value)}{'' if self.unit in ('', PERCENT) else ' '}{self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """The measure as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measure:
        """The inverse of `to_dict`."""
        return cls(**values)

    def _digits(self, value: float) -> str:
        return f"{self.shown(value):.1f}" if self.unit == PERCENT else f"{value:.4g}"


TOP1 = Measure(name="top1")

MEASURES: dict[str, tuple[Measure, ...]] = {
    "classification": (TOP1,),
}
"""The measures by which tasks of a kind can be compared; the first is the default."""


ANNOTATIONS: dict[str, str] = {
    "classification": "class",
}
"""How the samples of a kind are labelled: a key of `pipeline.data.annotations.ANNOTATIONS`."""


def measure_of(kind: str, metric: str | None = None) -> Measure:
    """The measure of a kind with this name; without a name, the kind's first.

    Raises:
        ValueError: There is no such kind, or it has no such metric.
    """
    if kind not in MEASURES:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(MEASURES)}")
    possible = MEASURES[kind]
    found = possible[0] if metric is None else next((one for one in possible if one.name == metric), None)
    if found is None:
        names = ", ".join(one.name for one in possible)
        raise ValueError(f"metric {metric!r}: a {kind} task is measured by one of {names}")
    return found
