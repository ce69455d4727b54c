"""A task's row in the table of a fan-out: how the task ended, and its results over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.search.sampler import Outcome
from pipeline.tasks.catalogue import Task
from pipeline.tasks.kinds import Measure

Status = Literal["done", "pending", "searched", "failed"]
"""How a task ended. ``pending``: only its registration is missing. ``searched``: nothing else was asked for."""


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """How one task ended. Fields without a result are None."""

    task: str
    """The task's name."""
    group: str
    """The task's group."""
    measure: Measure
    """The measure by which the task is compared; val and test are its values."""
    status: Status
    """How the task ended."""
    val: float | None = None
    """The selection runs' result, the mean over seeds."""
    test: float | None = None
    """The final runs' result, the mean over seeds."""
    val_std: float | None = None
    """The standard deviation of val over seeds, of a sample; None for one seed."""
    test_std: float | None = None
    """The standard deviation of test over seeds."""
    seeds: int = 1
    """How many trainings there were."""
    published: float | None = None
    """The paper's result for the same set-up, in the number that people see (per cent of a fraction)."""
    subset_reasons: tuple[str, ...] = ()
    """Why the data is not the benchmark's; empty where it is."""
    parameters: int | None = None
    """Trainable parameters."""
    images_per_second: float | None = None
    """The final run's speed."""
    seconds: float | None = None
    """Device-seconds of all runs of the first seed."""
    version: int | None = None
    """The number of the registered version."""
    champion: bool = False
    """Whether that version is the champion."""
    run_id: str | None = None
    """The MLflow run of that version."""
    error: str | None = None
    """Why the task failed, or why it is pending."""
    doubts: tuple[str, ...] = ()
    """What makes the results doubtful, a sentence each."""
    outcomes: tuple[Outcome, ...] = ()
    """The outcomes of the search's trials, where the task was only searched."""

    @classmethod
    def of(cls, task: Task, status: Status, **known: Any) -> TaskRow:
        """The row of a task, with what is known of it."""
        return cls(task=task.name, group=task.group, measure=task.measure, status=status, **known)

    @property
    def has_result(self) -> bool:
        """Whether the task was trained and tested."""
        return self.status in ("done", "pending") and self.test is not None

    @property
    def is_comparable(self) -> bool:
        """Whether the paper's number may stand beside the row."""
        return self.has_result and self.published is not None and not self.subset_reasons


def over_seeds(scores: Sequence[Mapping[str, float]], measure: Measure) -> dict[str, Any]:
    """The fields of a row that follow from the results of each seed.

    Args:
        scores: metrics by name, for each seed: ``test/<name>``, and ``val/<name>`` if there was a selection run.
        measure: which of the metrics counts.
    """
    found: dict[str, Any] = {"seeds": len(scores)}
    for split in ("val", "test"):
        values = [score[name] for score in scores if (name := f"{split}/{measure.name}") in score]
        found[split] = sum(values) / len(values) if values else None
        found[f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return found
