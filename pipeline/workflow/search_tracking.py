"""A search in MLflow: a run for every trial below the task's run, and there the choice and the pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.reports.search_pictures import (
    importance_bars,
    parallel_coordinates,
    result_against_parameters,
    trial_curves,
)
from pipeline.search.report import trials_table
from pipeline.search.sampler import Outcome
from pipeline.search.space import Space, label
from pipeline.search.trials import Record, Row, Trial, values_of
from pipeline.tasks.recipe import Recipe
from pipeline.workflow.job import TaskWork
from pipeline.workflow.tracking import log_row


class TrialRuns:
    """The MLflow runs of one search's trials.

    Args:
        work: the task that is searched.
        space: what may change.
        recipe: the recipe of trial 0.
    """

    def __init__(self, work: TaskWork, space: Space, recipe: Recipe) -> None:
        self._task, self._tracker = work.name, work.tracker
        self._measure, self._epochs = work.job.task.measure, recipe.epochs
        self._key, self._space = work.key, space
        self._open: set[int] = set()
        self._ended: set[int] = set()

    def log_rows(self, trial: Trial, rows: Sequence[Row]) -> None:
        """Logs epochs of a running trial."""
        key = self._run(trial.number, trial.point)
        for row in rows:
            log_row(self._tracker, key, "search", row)

    def log_trial(self, record: Record) -> None:
        """Logs a trial that has ended, and closes its run."""
        key = self._run(record.number, record.point)
        for row in record.rows:
            log_row(self._tracker, key, "search", row)
        if record.failed:
            self._tracker.set_tags(key, {"error": record.failed})
        facts = {
            "parameters": record.parameters,
            "device_seconds": record.device_seconds,
            "images_per_second": record.images_per_second,
        }
        self._tracker.log_metrics(key, self._epochs, facts)
        self._tracker.close_run(key, "FAILED" if record.failed else "FINISHED")
        self._ended.add(record.number)

    def log_search(
        self,
        records: Sequence[Record],
        outcomes: Sequence[Outcome],
        best: int,
        rungs: Sequence[int],
        importance: dict[str, float],
    ) -> None:
        """Logs the search's end in the task's run, and the trials that an earlier driver ended."""
        for record in records:
            if not self._tracker.has_ended(self._key_of(record.number)):
                self.log_trial(record)
            outcome = outcomes[record.number]
            ending = "failed" if record.failed else "whole" if outcome.whole else f"stopped after {outcome.epochs}"
            self._tracker.set_tags(self._key_of(record.number), {"outcome": ending})
        note = f"```\n{trials_table(outcomes, best, self._measure)}\n```"
        self._tracker.set_tags(self._key, {"search_winner": best, "mlflow.note.content": note})
        trials = [self._drawn(record, outcomes[record.number]) for record in records]
        title = f"{self._task}, search"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            curves, coordinates = folder / "search-trials.png", folder / "search-parallel-coordinates.png"
            parameters, bars = folder / "search-accuracy-parameters.png", folder / "search-importance.png"
            look: Any = {"title": title, "winner": best, "measure": self._measure}
            trial_curves(trials, rungs, curves, **look)
            parallel_coordinates(trials, self._space, coordinates, **look)
            result_against_parameters(trials, parameters, **look)
            drawn = [curves, coordinates, parameters]
            if importance:
                importance_bars(importance, bars, title=title)
                drawn.append(bars)
            for picture in drawn:
                self._tracker.log_artifact(self._key, picture, "pictures")

    def break_off(self) -> None:
        """Closes the runs of trials that have not ended."""
        for number in self._open - self._ended:
            self._tracker.close_run(self._key_of(number), "KILLED")

    def _key_of(self, number: int) -> str:
        return f"{self._key}/trial-{number}"

    def _run(self, number: int, point: dict[str, Any]) -> str:
        """The key of a trial's run; opens the run unless it is open."""
        key = self._key_of(number)
        if number not in self._open:
            self._open.add(number)
            params = {"task": self._task, "trial": number, "epochs": self._epochs}
            self._tracker.open_run(
                key,
                name=f"{self._task} trial {number}{' (default)' if number == 0 else ''}",
                parent_key=self._key,
                params={**params, **{name: label(value) for name, value in point.items()}},
            )
        return key

    def _drawn(self, record: Record, outcome: Outcome) -> dict[str, Any]:
        """A trial as `pipeline.reports.search_pictures` takes it, without the epochs after the one that counts."""
        values = values_of(record.rows, self._measure)
        return {
            "number": record.number,
            "point": record.point,
            "values": {epoch: value for epoch, value in values.items() if epoch <= outcome.epochs},
            "value": outcome.value,
            "whole": outcome.whole,
            "epochs": outcome.epochs,
            "parameters": outcome.parameters,
            "failed": record.failed,
        }
