"""What a fan-out left in its storage, to be compared bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Of one task; two that are equal are equal to the last bit."""

    sha256: dict[str, str]
    """Of the light tensors, by run (``selection``, ``final``)."""
    val: float
    test: float
    search_sha256: str
    """Of the outcomes of its trials."""
    history_sha256: str
    """Of every epoch's numbers but those that tell time and memory."""


_MEASURED = ("images_per_second", "seconds", "memory", "system/")
"""Parts of the names of numbers that no two runs share."""


def read_result(storage: Path, task: str) -> TaskResult:
    """Raises FileNotFoundError where the task's training has not ended, ValueError where it was recorded twice."""
    records = sorted((storage / "workflows" / task).glob("train-*.json"))
    if not records:
        raise FileNotFoundError(f"{storage}: no finished training of {task}")
    if len(records) > 1:
        raise ValueError(f"{storage}: {len(records)} finished trainings of {task}, expected one")
    runs = json.loads(records[0].read_text())["result"]
    metrics = {name: value for run in runs.values() for name, value in run["results"]["metrics"].items()}
    rows = {kind: [_repeatable(row) for row in run["history"]] for kind, run in runs.items()}
    return TaskResult(
        search_sha256=_search_sha256(storage, task),
        sha256={kind: tensors_sha256(records[0].parent / run["tensors"]) for kind, run in runs.items()},
        val=metrics["val/top1"],
        test=metrics["test/top1"],
        history_sha256=hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
    )


def _search_sha256(storage: Path, task: str) -> str:
    (record,) = (storage / "workflows" / task).glob("search-*.json")
    outcomes = json.loads(record.read_text())["result"]["outcomes"]
    return hashlib.sha256(json.dumps(outcomes, sort_keys=True).encode()).hexdigest()


def tensors_sha256(path: Path) -> str:
    """Over names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _repeatable(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not any(part in name for part in _MEASURED)}
