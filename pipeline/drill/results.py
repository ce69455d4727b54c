"""The results that a fan-out left in its storage, for a comparison bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from pipeline.tasks.kinds import Measure
from pipeline.workflow.record import metrics_of, records_of


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The results of one task; two that are equal are equal to the last bit."""

    sha256: dict[str, str]
    """The hash of the light tensors, by run (``selection``, ``final``)."""
    val: float
    """The selection run's result, by the task's measure."""
    test: float
    """The final run's result, by the task's measure."""
    search_sha256: str
    """The hash of the trials' outcomes."""
    history_sha256: str
    """The hash of every epoch's numbers, except times and memory."""


_MEASURED = ("images_per_second", "seconds", "memory", "system/")
"""Parts of the names of numbers that no two runs share."""


def read_result(storage: Path, task: str, measure: Measure) -> TaskResult:
    """The results of a task, by its measure.

    Raises:
        FileNotFoundError: the task's training has not ended.
        ValueError: it was recorded twice.
    """
    records = sorted((storage / "workflows" / task).glob("train-*.json"))
    if not records:
        raise FileNotFoundError(f"{storage}: no finished training of {task}")
    if len(records) > 1:
        raise ValueError(f"{storage}: {len(records)} finished trainings of {task}, expected one")
    runs = records_of(json.loads(records[0].read_text())["result"])
    metrics = metrics_of(runs)
    rows = {name: [_repeatable(row) for row in run.history] for name, run in runs.items()}
    return TaskResult(
        search_sha256=_search_sha256(storage, task),
        sha256={name: tensors_sha256(records[0].parent / run.tensors) for name, run in runs.items()},
        val=metrics[f"val/{measure.name}"],
        test=metrics[f"test/{measure.name}"],
        history_sha256=hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
    )


def _search_sha256(storage: Path, task: str) -> str:
    (record,) = (storage / "workflows" / task).glob("search-*.json")
    outcomes = json.loads(record.read_text())["result"]["outcomes"]
    return hashlib.sha256(json.dumps(outcomes, sort_keys=True).encode()).hexdigest()


def tensors_sha256(path: Path) -> str:
    """A hash over names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _repeatable(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not any(part in name for part in _MEASURED)}
