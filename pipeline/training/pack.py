"""A pack: units of several tasks that are trained in one batch on one device, step by step together. Units join and
leave between any two steps; one that fails leaves, too, and the others do not notice.

Every run of a unit takes part, so that a task's selection run and its final run are made at the same time. Plain torch.
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
    """A run, and its epoch under way; none between two epochs."""

    unit: str
    state: RunState
    epoch: Epoch | None = None

    def ask(self, workers: Workers) -> Part | None:
        """What it wants computed next, its state being whole; None once it has finished."""
        while not self.state.finished:
            self.epoch = self.epoch or epoch_of(self.state, workers)
            said = advance(self.epoch, None)
            if said is None:
                self.epoch = None
            elif not isinstance(said, Resting):
                return said
        return None

    def answer(self, value: Answer) -> Part | None:
        """What else it wants computed before its state is whole again."""
        assert self.epoch is not None
        said = advance(self.epoch, value)
        return None if isinstance(said, Resting) else said


class Pack:
    """Trains its units; between two steps the state of each can be saved.

    Args:
        workers: one process; all models are on its device and share one backbone there.

    Raises:
        ValueError: there are several processes.
    """

    def __init__(self, workers: Workers) -> None:
        if workers.size != 1:
            raise ValueError(f"{workers.size} workers: a pack is trained by one")
        self._workers = workers
        self._computer = Computer(workers.device)
        self._units: dict[str, list[_Running]] = {}

    def __len__(self) -> int:
        """Units in training."""
        return len(self._units)

    def units(self) -> dict[str, list[RunState]]:
        """The states of the runs of each unit."""
        return {unit: [running.state for running in runs] for unit, runs in self._units.items()}

    def join(self, unit: str, runs: Sequence[TaskRun], resume: Sequence[dict[str, Any]] | None = None) -> None:
        """From the next step on.

        Args:
            unit: a name that no other unit has.
            runs: as for `pipeline.training.loop.fit`.
            resume: the state dicts to go on from, one a run.

        Raises:
            TrainingError: a run without a single step.
            ValueError: the name is taken.
        """
        if unit in self._units:
            raise ValueError(f"{unit}: is in the pack already")
        states = begin(runs, self._workers, resume)
        self._units[unit] = [_Running(unit, state) for state in states]

    def sync(self, unit: str) -> list[RunState]:
        """The states of its runs, ready to be saved.

        Raises:
            NotFiniteError: it has gone wrong.
        """
        states = self.units()[unit]
        for state in states:
            state.sync(self._workers)
        return states

    def leave(self, unit: str) -> None:
        """Its states stay what they are."""
        for running in self._units.pop(unit):
            self._computer.forget(running.state.run.model)

    def step(self) -> dict[str, Exception]:
        """A train step, or a batch of an evaluation, of every run that has not finished.

        Returns:
            By unit, what went wrong with those that have left by it. What goes wrong where all compute together is
            raised; no state is whole then.
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
    """That a run computes until its state is whole again: all parts of a step."""
    return part.state.run.batch_size if isinstance(part, TrainPart) else len(part.images)
