"""One trial on a worker: a selection run through the training loop, saved while it runs, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hst.backbone import Backbone
from pipeline.training import checkpoints
from pipeline.training.loop import fit
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import RunState, TaskRun
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

SECONDS_BETWEEN_SAVES = 20.0
"""Least time between two saves. A shorter trial is never saved: after a kill it is run again."""

Tell = Callable[[list[dict[str, Any]], dict[str, Any]], None]
"""Called after every validation, with the rows since the last call and the other fields of a trial's record."""

_before: list[TaskRun] = []


def run_trial(
    spec: RunSpec,
    backbone: Backbone,
    workers: Workers,
    *,
    folder: str,
    attempt: str,
    tell: Tell,
    is_stopping: Callable[[], bool],
    cache_shards: bool = False,
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
) -> None:
    """Train and validate one run to its last epoch, unless ``tell`` ends it.

    Args:
        spec: the spec of a selection run.
        backbone: on the worker's device.
        workers: this process alone.
        folder: URI of this trial alone. The trial goes on from the furthest checkpoint below it.
        attempt: the name of this attempt among those that write there.
        tell: is called with new rows.
        is_stopping: once it returns true, the state is saved and the trial ends.
        cache_shards: see `build_run`.
        seconds_between_saves: the state is saved no more often.

    Raises:
        Stopped: ``is_stopping`` returned true; the state is saved.
        TrainingError: see `fit`.
    """
    run = build_run(spec, backbone, workers, cache_shards=cache_shards)
    _before[:] = [run]  # this trial shares the images of the one before, which may be released only now
    saver = _Saver(folder, attempt, tell, is_stopping, seconds_between_saves)
    checkpoint = checkpoints.find(folder)
    resume = None if checkpoint is None else checkpoint.states()
    fit([run], workers=workers, report=saver.report, pause=saver.pause, resume=resume)


class _Saver:
    def __init__(
        self, folder: str, attempt: str, tell: Tell, is_stopping: Callable[[], bool], seconds_between_saves: float
    ) -> None:
        self._folder, self._attempt, self._tell, self._is_stopping = folder, attempt, tell, is_stopping
        self._seconds = seconds_between_saves
        self._last, self._saves, self._told = time.monotonic(), 0, 0
        self._stopping = False

    def pause(self, step: int) -> bool:
        """Whether to report in the middle of an epoch."""
        self._stopping = self._stopping or self._is_stopping()
        return self._stopping or time.monotonic() - self._last >= self._seconds

    def report(self, states: list[RunState], finished: bool) -> None:
        (state,) = states
        due = self.pause(0)
        rows: list[dict[str, Any]] = state.history[self._told :]
        if rows and any(name.startswith("val/") for name in rows[-1]):
            self._tell(rows, _facts(state))
            self._told = len(state.history)
        if not finished and due:
            self._saves += 1
            checkpoints.keep(self._folder, self._attempt, self._saves, states)
            self._last = time.monotonic()
        if self._stopping and not finished:
            raise Stopped("the driver was told to stop; the state is saved")


def _facts(state: RunState) -> dict[str, Any]:
    rates = [float(row["images_per_second"]) for row in state.history]
    return {
        "parameters": sum(p.numel() for p in state.run.model.parameters()),
        "device_seconds": state.device_seconds,
        "images_per_second": sum(rates) / len(rates),
    }
