"""The training loop: plain torch, every method and task kind, any number of workers. It knows neither Ray nor MLflow.

`fit` takes a list of task runs on one frozen backbone, trains them epoch by epoch, and is given what it reports to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hst.model import TaskModel
from pipeline.training.computing import Computer
from pipeline.training.epochs import Resting, advance, epoch_of
from pipeline.training.optimizer import build_optimizer
from pipeline.training.task_run import RunState, TaskRun
from pipeline.training.workers import Workers

Report = Callable[[list[RunState], bool], None]
"""Called on every worker after every epoch with all run states, and whether this was the last one."""

Pause = Callable[[int], bool]
"""Asked on every worker after every step of an epoch and, counted on, after every batch of its evaluation that all
workers have: whether to report now, too."""


def fit(
    runs: Sequence[TaskRun],
    *,
    workers: Workers,
    report: Report,
    pause: Pause = lambda step: False,
    resume: Sequence[dict[str, Any]] | None = None,
) -> list[RunState]:
    """Train every run to its last epoch and evaluate it.

    Args:
        runs: task runs whose models are on ``workers.device`` and share one backbone there.
        workers: this process and its group.
        report: told after every epoch; may save `RunState.state_dict`.
        pause: whether to report in the middle of an epoch; all workers must say the same.
        resume: the state dicts of an earlier report, one a run, to go on from.

    Raises:
        TrainingError: a run without a single step, a loss that is not finite.
    """
    states = begin(runs, workers, resume)
    wrapped = [_distribute(state.run.model, workers) for state in states]
    computer = Computer(workers.device)
    for epoch in range(max(state.run.recipe.epochs for state in states)):
        active = [i for i, state in enumerate(states) if state.epochs_done == epoch and not state.finished]
        for i in active:
            _run_epoch(states[i], wrapped[i], computer, workers, pause, lambda: report(states, False))
        if active:
            report(states, all(state.finished for state in states))
    return states


def begin(runs: Sequence[TaskRun], workers: Workers, resume: Sequence[dict[str, Any]] | None) -> list[RunState]:
    """Runs at their beginning, or where they were; arguments and errors as of `fit`."""
    for run in runs:
        run.check(workers.size)
    states = [RunState(run, build_optimizer(run.model, run.recipe)) for run in runs]
    for state, saved in zip(states, resume or [], strict=bool(resume)):
        state.load_state_dict(saved)
    return states


def _distribute(model: TaskModel, workers: Workers) -> nn.Module:
    """Only the task's parameters are synchronised: the backbone is no submodule, and batch norm is global already."""
    if workers.size == 1:
        return model
    device_ids = [workers.device.index] if workers.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _run_epoch(
    state: RunState, model: nn.Module, computer: Computer, workers: Workers, pause: Pause, report: Callable[[], None]
) -> None:
    epoch, answer = epoch_of(state, workers), None
    while (said := advance(epoch, answer)) is not None:
        if not isinstance(said, Resting):
            answer = computer.alone(said, model)
            continue
        answer = None
        if said.done and pause(said.done):
            state.sync(workers)
            report()
