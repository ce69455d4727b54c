"""The hooks that Ray Tune calls while it runs trials: which trial comes next, is stopped, or begins again.

Tune calls all of them from the one thread in which it runs; an error that they raise ends the search.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher as TuneSearcher

from pipeline.search.trials import Next, Row, Trial, Trials
from pipeline.training.on_ray.driver import MAX_RESTARTS
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import TrainingError
from pipeline.training.unit import RunSpec

_ERROR = re.compile(r"^[\w.]+Error: .*$", re.MULTILINE)


class Turn:
    """Lets one search alone start at a time, until Tune asks for a trial: Tune's registries are not thread-safe."""

    _lock = threading.Lock()

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> None:
        self._lock.acquire()
        self._held = True

    def over(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.over()


class Course:
    """The state that the searcher and the scheduler share."""

    def __init__(
        self,
        trials: Trials,
        spec_of: Callable[[Trial], RunSpec],
        folder_of: Callable[[Trial], str],
        on_rows: Callable[[Trial, Sequence[Row]], None],
        say: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.trials, self.spec_of, self.folder_of = trials, spec_of, folder_of
        self.on_rows, self.say, self.stopped = on_rows, say, stopped
        self.running: dict[int, Trial] = {}
        self.placed: set[int] = set()
        """Trials that have a process."""
        self.restarts: Counter[int] = Counter()
        """The restarts of each trial since its last new row."""
        self.furthest: Counter[int] = Counter()
        """The last epoch that each trial has reported."""
        self.given_up = False
        """Whether nobody waits for the trials any more."""
        self.turn = Turn()
        self.error: Exception | None = None
        """The error that a hook has raised."""

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its hooks for a restart that never happens."""
        return {}

    @contextlib.contextmanager
    def hook(self) -> Iterator[None]:
        """Wraps every call from Tune."""
        try:
            if self.given_up:
                raise Stopped("the trials did not end in time")
            yield
        except Exception as error:
            self.error = error
            raise

    @property
    def is_waiting(self) -> bool:
        """Whether trials should run and none of them has a process."""
        running = list(self.running)
        return bool(running) and self.placed.isdisjoint(running)

    def next(self, at_once: int) -> Trial | Next:
        """The next trial to run; at most ``at_once`` run at a time."""
        while not self.stopped():
            if len(self.running) >= at_once:
                return Next.WAIT
            trial = self.trials.next()
            if isinstance(trial, Next):
                return trial
            try:
                self.spec_of(trial)
            except ValueError as error:  # a value that does not go with another
                self.trials.on_failed(trial.number, str(error))
                continue
            self.running[trial.number] = trial
            return trial
        return Next.DONE

    def take(self, result: dict[str, Any]) -> bool:
        """Takes a message of a trial; returns whether the trial ends with it."""
        number, (said,) = result["number"], result["said"]
        if "fault" in said:  # other trials would fail in the same way
            raise TrainingError(said["fault"])
        if "failed" in said:
            self.trials.on_failed(number, said["failed"])
        elif "rows" in said:
            if (epoch := int(said["rows"][-1]["epoch"])) > self.furthest[number]:
                self.restarts[number], self.furthest[number] = 0, epoch
            self.on_rows(self.running[number], said["rows"])
            if not self.trials.on_rows(number, said["rows"], **said["facts"]):
                return False
        del self.running[number]
        self.placed.discard(number)
        return True


class Searcher(TuneSearcher):
    """Gives Tune the next trial."""

    def __init__(self, course: Course, at_once: int) -> None:
        super().__init__()
        self._course, self._at_once = course, at_once

    def suggest(self, trial_id: str) -> Any:
        with self._course.hook():
            self._course.turn.over()
            trial = self._course.next(self._at_once)
            if isinstance(trial, Next):
                return TuneSearcher.FINISHED if trial is Next.DONE else None
            spec, folder = self._course.spec_of(trial).to_dict(), self._course.folder_of(trial)
        return {"number": trial.number, "spec": spec, "folder": folder, "tune_id": trial_id}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self._course.hook():
            if error:
                raise TrainingError("a trial's process could not be started, after several tries")


class Scheduler(FIFOScheduler):
    """Tells Tune which trial ends."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self._course = course

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        with self._course.hook():
            return TrialScheduler.STOP if self._course.take(result) else TrialScheduler.CONTINUE


class Processes(tune.Callback):
    """Notes which trials have a process, and prints a line for every trial that begins again.

    If a trial begins again too often without a new epoch, the search ends.
    """

    def __init__(self, course: Course) -> None:
        self._course = course

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._course.placed.add(trial.config["number"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self._course.hook():
            self._begin_again(trial)

    def _begin_again(self, trial: Any) -> None:
        number, course = trial.config["number"], self._course
        course.placed.discard(number)
        errors = _ERROR.findall(Path(trial.error_file).read_text())
        why = errors[-1] if errors and "Actor" not in errors[-1] else "lost its process"
        if course.restarts[number] == MAX_RESTARTS:
            raise TrainingError(f"trial {number} failed {MAX_RESTARTS + 1} times, at last: {why}")
        course.restarts[number] += 1
        course.say(f"trial {number}: {why}; again from its last save ({course.restarts[number]} of {MAX_RESTARTS})")
