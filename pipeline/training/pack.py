"""A pack: units of several tasks that train together on one device, in one batch, step by step.

Units can join and leave between any two steps. A unit that fails leaves the pack, and the others do not notice. All
runs of a unit take part, so a task's selection run and its final run train at the same time. This is plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.training.computing import Computer
from pipeline.training.epochs import Answer, Epoch, Part, Resting, TrainPart, advance, epoch_of
from pipeline.training.loop import begin
from pipeline.training.task_run import RunState, TaskRun
from pipeline.training.workers import Workers


@dataclass(eq=False)
class _Running:
    """A run and its current epoch, which is None between two epochs."""

    unit: str
    state: RunState
    epoch: Epoch | None = None

    def ask(self, workers: Workers) -> Part | None:
        """The part that the run wants computed next; None once it has finished. Its state must be whole."""
        while not self.state.finished:
            self.epoch = self.epoch or epoch_of(self.state, workers)
            said = advance(self.epoch, None)
            if said is None:
                self.epoch = None
            elif not isinstance(said, Resting):
                return said
        return None

    def answer(self, value: Answer) -> Part | None:
        """The part that the run also wants computed before its state is whole again; None if there is none."""
        assert self.epoch is not None
        said = advance(self.epoch, value)
        return None if isinstance(said, Resting) else said


class Pack:
    """Trains its units. Between two steps the state of each can be saved.

    Args:
        workers: A single process; all models are on its device and share one backbone there.

    Raises:
        ValueError: There are several processes.
    """

    def __init__(self, workers: Workers) -> None:
        if workers.size != 1:
            raise ValueError(f"{workers.size} workers: a pack is trained by one")
        self._workers = workers
        self._computer = Computer(workers.device)
        self._units: dict[str, list[_Running]] = {}

    def __len__(self) -> int:
        """Number of units in training."""
        return len(self._units)

    def units(self) -> dict[str, list[RunState]]:
        """The states of the runs of each unit."""
        return {unit: [running.state for running in runs] for unit, runs in self._units.items()}

    def join(self, unit: str, runs: Sequence[TaskRun], resume: Sequence[dict[str, Any]] | None = None) -> None:
        """Adds a unit, which trains from the next step on.

        Args:
            unit: A name that no other unit has.
            runs: As for `pipeline.training.loop.fit`.
            resume: The state dicts to resume from, one a run.

        Raises:
            TrainingError: A run has too few images for a single step.
            ValueError: The name is taken.
        """
        if unit in self._units:
            raise ValueError(f"{unit}: is in the pack already")
        states = begin(runs, self._workers, resume)
        self._units[unit] = [_Running(unit, state) for state in states]

    def sync(self, unit: str) -> list[RunState]:
        """Returns the states of a unit's runs, ready to be saved.

        Raises:
            NotFiniteError: The loss of a run is not finite.
        """
        states = self.units()[unit]
        for state in states:
            state.sync(self._workers)
        return states

    def leave(self, unit: str) -> None:
        """Removes a unit. Its states stay as they are."""
        for running in self._units.pop(unit):
            self._computer.forget(running.state.run.model)

    def step(self) -> dict[str, Exception]:
        """Runs one train step, or one batch of an evaluation, of every run that has not finished.

        Returns:
            The errors of units that failed and so left the pack, by unit. An error in the joint computation is raised;
            then no state is whole.
        """
        failed: dict[str, Exception] = {}

        def wants(running: _Running, ask: Callable[[], Part | None]) -> dict[_Running, Part]:
            """The part that a run wants computed next, if it wants one."""
            try:
                part = ask()
            except Exception as error:
                failed.setdefault(running.unit, error)
                return {}
            return {} if part is None else {running: part}

        wanted: dict[_Running, Part] = {}
        for running in [running for runs in self._units.values() for running in runs]:
            wanted |= wants(running, partial(running.ask, self._workers))
        images = {running: _step_images(part) for running, part in wanted.items()}
        for running, count in images.items():
            running.state.device_part = count / sum(images.values())
        while wanted:
            answers = self._computer.together(list(wanted.values()))
            answered, wanted = list(zip(wanted, answers, strict=True)), {}
            for running, answer in answered:
                wanted |= wants(running, partial(running.answer, answer))
        for unit in failed:
            self.leave(unit)
        return failed


def _step_images(part: Part) -> int:
    """Number of images that a run computes until its state is whole again: those of all parts of a step."""
    return part.state.run.batch_size if isinstance(part, TrainPart) else len(part.images)
