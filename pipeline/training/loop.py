"""The training loop: plain torch, for every method and task kind and any number of workers.

It knows neither Ray nor MLflow: `fit` trains a list of task runs on one frozen backbone, epoch by epoch, and reports to
a function that it is given.
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
"""Called on every worker within an epoch; says whether to report now as well.

It is called after every step, and after every evaluated batch that all workers have. Its argument is the number of
steps and such batches so far in this epoch.
"""


def fit(
    runs: Sequence[TaskRun],
    *,
    workers: Workers,
    report: Report,
    pause: Pause = lambda step: False,
    resume: Sequence[dict[str, Any]] | None = None,
) -> list[RunState]:
    """Trains every run to its last epoch and evaluates it.

    Args:
        runs: Task runs whose models are on ``workers.device`` and share one backbone there.
        workers: This process and its group.
        report: Called after every epoch; it may save `RunState.state_dict`.
        pause: Says whether to report in the middle of an epoch. All workers must give the same answer.
        resume: The state dicts to resume from, one a run, as an earlier report saved them.

    Raises:
        TrainingError: A run has too few images for a single step, or a loss is not finite.
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
    """The states of runs at their beginning, or where ``resume`` left them; arguments and errors as for `fit`."""
    for run in runs:
        run.check(workers.size)
    states = [RunState(run, build_optimizer(run.model, run.recipe)) for run in runs]
    for state, saved in zip(states, resume or [], strict=bool(resume)):
        state.load_state_dict(saved)
    return states


def _distribute(model: TaskModel, workers: Workers) -> nn.Module:
    """Wraps a model so that workers sum its gradients.

    Only the task's parameters are synchronised: the backbone is not a submodule, and batch norm is global already.
    """
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
