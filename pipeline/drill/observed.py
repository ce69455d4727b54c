"""Reads from storage how far the tasks of a fan-out are, and what was started anew; its driver may be dead."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.training import checkpoints

_DELIVERED = '{"delivered":'


@dataclass(frozen=True, kw_only=True)
class TaskProgress:
    """How far one task is at one moment."""

    trials: int
    """Trials of its search that have ended."""
    searching: bool
    """Its search is under way."""
    searched: bool
    """Its search is over and recorded."""
    trained: bool
    """Its training is over and recorded."""
    registered: bool
    starts: frozenset[str]
    """The folders of its training in storage, one for each start; every restart, by a driver or by Ray, adds one."""
    epochs: float
    """Epochs of its training that are saved."""


class Observer:
    """Reads the local storage of one fan-out."""

    def __init__(self, storage: Path, tasks: list[str], *, epochs: int, trials: int, trial_epochs: int) -> None:
        self._storage, self.tasks, self._epochs = storage, tasks, epochs
        self._trials, self._trial_epochs = trials, trial_epochs

    def progress(self) -> dict[str, TaskProgress]:
        """The progress of every task, by name."""
        return {task: self._progress(task) for task in self.tasks}

    def share_done(self) -> float:
        """The share of all epochs of all tasks, from 0 to 1. A trial makes one run of two: its epochs count half."""
        half = self._trial_epochs / 2
        done = 0.0
        for one in self.progress().values():
            done += half * (self._trials if one.searched else one.trials)
            done += self._epochs if one.trained else min(one.epochs, self._epochs)
        return done / ((self._epochs + half * self._trials) * len(self.tasks))

    def delivered(self) -> int:
        """How many lines of the ledgers note that MLflow has taken something."""
        ledgers = (self._storage / "ledgers").glob("*/ledger.jsonl")
        return sum(line.startswith(_DELIVERED) for ledger in ledgers for line in ledger.read_text().splitlines())

    def _progress(self, task: str) -> TaskProgress:
        name = re.compile(re.escape(task) + "-[0-9a-f]{16}")
        train = self._storage / "train"
        units = [unit for unit in train.glob(f"{task}-*") if name.fullmatch(unit.name)]
        steps = self._storage / "workflows" / task
        stages = self._stages(task)
        return TaskProgress(
            trials=len(list(steps.glob("trial-*.json"))),
            searching="search" in stages,
            searched=any(steps.glob("search-*.json")),
            trained=any(steps.glob("train-*.json")),
            registered="done" in stages,
            starts=frozenset(f"{unit.name}/{start.name}" for unit in units for start in unit.iterdir()),
            epochs=max((checkpoints.progress(str(unit)) or 0.0 for unit in units), default=0.0),
        )

    def _stages(self, task: str) -> set[str]:
        """The task's stages in the fan-outs of this storage; several if a driver's code has changed."""
        return {json.loads(file.read_text())["stage"] for file in (self._storage / "fanouts").glob(f"*/{task}.json")}
