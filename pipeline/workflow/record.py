"""What a finished run leaves in the record of the step ``train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A selection run or a final run that has ended, in JSON values."""

    history: list[dict[str, Any]]
    """One row for each epoch."""
    results: dict[str, Any]
    """What the run is summarised by: ``metrics`` by name, throughput, device, what metrics keep for pictures."""
    tensors: str
    """The file of the run's light tensors, beside the step's record."""
    code_version: str
    """The version of the code that trained it."""

    @property
    def metrics(self) -> dict[str, float]:
        """Results by name, ``val/<metric>`` or ``test/<metric>``."""
        found: dict[str, float] = self.results["metrics"]
        return found

    def to_dict(self) -> dict[str, Any]:
        """As the step's record keeps it."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """The inverse of `to_dict`."""
        return cls(**values)


Records = dict[str, RunRecord]
"""The records of a task's runs, by ``selection`` and ``final``."""


def records_of(result: Mapping[str, Mapping[str, Any]]) -> Records:
    """The records in a finished step's result."""
    return {run: RunRecord.from_dict(values) for run, values in result.items()}


def metrics_of(records: Records) -> dict[str, float]:
    """The metrics of all runs together."""
    return {name: value for record in records.values() for name, value in record.metrics.items()}
