"""Runs a unit of task runs on a group of Ray Train workers and brings its results back.

Only this module, `process_group` and `mailbox` speak to Ray Train.

A killed worker restarts from its last report. A mistake in the data or the recipe is not retried. If the number of
workers is a range, Ray itself replaces the workers by more of them when a node has come. After a node has gone, this
module starts the unit again with as many workers as fit. New rows reach the driver through a mailbox. The checkpoint
holds all rows as well, so losing the mailbox loses none.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from hst.backbone import Backbone
from pipeline.cluster.resources import Plan
from pipeline.console.progress import epochs_text
from pipeline.storage.errors import DiskFullError, is_full
from pipeline.storage.files import ray_filesystem
from pipeline.training import checkpoints
from pipeline.training.checkpoints import RunResult
from pipeline.training.on_ray.mailbox import Mailbox
from pipeline.training.on_ray.process_group import OwnAddressConfig
from pipeline.training.on_ray.worker import work
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import TrainingError, is_mistake
from pipeline.training.unit import RunSpec

MAX_RESTARTS = 3
"""Most restarts in a row without a report between them. In total, a long training may restart any number of times."""
SECONDS_BETWEEN_REPORTS = 2.0
"""Least time between two reports. A report is a barrier and a checkpoint, and may take longer than a short epoch; then
it carries the rows of several epochs."""
SECONDS_BETWEEN_PAUSES = 20.0
"""Least time before a report in the middle of an epoch. Long epochs need it: without it a killed worker loses the whole
epoch."""
SECONDS_BETWEEN_RESIZES = 60.0
"""How often Ray checks whether a range of workers can grow. Growing loses what they did since the last report."""

SECONDS_BETWEEN_ROWS = 0.5
"""How often the driver looks for new rows and checks whether it must stop."""
GRACE_S = 20.0
"""How long workers have to save their state after they were asked to stop."""

OnRows = Callable[[int, list[dict[str, Any]]], None]
"""Called on the driver with the index of a run in its unit and its new rows. After a restart a row may come again."""


def put_backbone(backbone: Backbone) -> ray.ObjectRef:
    """Puts the frozen weights into Ray's object store: one copy a node, shared by all workers there."""
    return ray.put(backbone.arrays())


def train_unit(
    specs: Sequence[RunSpec],
    *,
    folder: str,
    attempt: int,
    backbone: ray.ObjectRef,
    plan: Plan,
    on_rows: OnRows,
    say: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
    cache_shards: bool = False,
    seconds_between_reports: float = SECONDS_BETWEEN_REPORTS,
    seconds_between_pauses: float = SECONDS_BETWEEN_PAUSES,
    seconds_between_resizes: float = SECONDS_BETWEEN_RESIZES,
) -> list[RunResult]:
    """Trains a unit to its end and returns one result a run, in order.

    Args:
        specs: The runs; all use one backbone.
        folder: URI of this unit's own folder; its name contains a fingerprint of all that the unit depends on.
            Training resumes from the furthest checkpoint below it, whoever wrote that.
        attempt: Number of the lease's attempt. Each attempt writes in its own folder below ``folder``, so the workers
            of a driver that was taken for dead cannot disturb those of the next.
        backbone: Returned by `put_backbone`.
        plan: The workers and their resources.
        on_rows: Called with new rows.
        say: Prints a line.
        stopped: Once it returns true, the workers have GRACE_S to save their state and end. After that they end with
            the driver's connection to Ray.
        cache_shards: See `build_run`.
        seconds_between_reports: Least time between reports at the ends of epochs. A killed worker loses what it did
            since the last report.
        seconds_between_pauses: Least time before a report in the middle of an epoch.
        seconds_between_resizes: How often Ray checks whether a range of workers can grow.

    Raises:
        TrainingError: The unit failed, with the cause. What it had reported stays in storage.
        Stopped: The driver was told to stop.
    """
    if stopped():  # a process that ends while Ray is about to start workers for it is aborted by Ray
        raise Stopped(folder)
    config = {
        "specs": [spec.to_dict() for spec in specs],
        "backbone": backbone,
        "threads": plan.cpus_per_worker,
        "device_share": plan.gpus_per_worker or 1.0,
        "tells_workers": plan.worker_range is not None,
        "cache_shards": cache_shards,
        "seconds_between_reports": seconds_between_reports,
        "seconds_between_pauses": seconds_between_pauses,
    }

    def trainer(start: int, resume: ray.ObjectRef | None, mailbox: Mailbox) -> TorchTrainer:
        own = {**config, "resume": resume, "mailbox": mailbox.handle}
        return torch_trainer(
            work, own, plan, folder=folder, name=f"{attempt:04d}-{start}", resize_seconds=seconds_between_resizes
        )

    restarts, furthest = 0, None
    for start in itertools.count():
        resume = checkpoints.find(folder, say=say)
        if resume is not None and resume.finished:
            break
        if resume is not None:
            say(f"{specs[0].task}: going on after {epochs_text(resume.progress[0] / len(specs))}")
            if furthest is None or resume.progress > furthest:
                restarts, furthest = 0, resume.progress
        mailbox = Mailbox()
        try:
            # Send the state, not its location: the workers of a driver taken for dead may still replace the files.
            states = None if resume is None else ray.put(resume.states())
            error = run_trainer(trainer(start, states, mailbox), mailbox, on_rows, stopped)
        finally:
            mailbox.close()
        if error is None:
            resume = checkpoints.find(folder, say=say)
            break
        if isinstance(error, Stopped) or stopped():
            raise Stopped(folder) from error
        if is_mistake(error):
            raise TrainingError(str(error)) from error
        if is_full(error):
            raise TrainingError(str(DiskFullError.of(error.filename or folder, error))) from error
        if restarts == MAX_RESTARTS:
            raise TrainingError(f"{folder}: failed {restarts + 1} times, at last with {error!r}") from error
        restarts += 1
        reason = (str(error).splitlines() or [""])[0]
        say(
            f"{specs[0].task}: {type(error).__name__}: {reason}; again from the last report "
            f"({restarts} of {MAX_RESTARTS})"
        )
    return finished_results(folder, resume, on_rows)


def finished_results(folder: str, resume: checkpoints.Checkpoint | None, on_rows: OnRows) -> list[RunResult]:
    """The results of a unit that has ended. All rows are passed to ``on_rows`` once more.

    Raises:
        TrainingError: The unit has not ended.
    """
    if resume is None or not resume.finished:
        raise TrainingError(f"{folder}: training ended without a whole checkpoint")
    results = resume.results()
    for i, run in enumerate(results):
        on_rows(i, run.history)
    return results


def torch_trainer(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    plan: Plan,
    *,
    folder: str,
    name: str,
    resize_seconds: float = SECONDS_BETWEEN_RESIZES,
) -> TorchTrainer:
    """Runs ``worker`` with ``config`` on a plan's workers; it fails as soon as one of them fails.

    What the workers report is kept below ``folder``, a URI, under ``name``.
    """
    filesystem, path = ray_filesystem(folder)
    resources = {"CPU": plan.cpus_per_worker, **({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})}
    return TorchTrainer(
        worker,
        train_loop_config=config,
        torch_config=OwnAddressConfig(backend="gloo" if plan.shares_gpu or not plan.gpus_per_worker else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.asked_workers,
            elastic_resize_monitor_interval_s=resize_seconds,
            use_gpu=plan.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )


def run_trainer(
    trainer: TorchTrainer, mailbox: Mailbox, on_message: Callable[..., None], stopped: Callable[[], bool]
) -> BaseException | None:
    """Runs ``trainer.fit`` in a thread and meanwhile passes messages to ``on_message``. Returns the error, or None.

    Once ``stopped`` returns true, the workers are asked to stop, and have GRACE_S to do so.
    """
    outcome: list[BaseException] = []

    def target() -> None:
        try:
            trainer.fit()
        except Exception as error:
            outcome.append(cause_of(error))

    thread = threading.Thread(target=target, name="fit", daemon=True)
    thread.start()
    deadline: float | None = None
    while thread.is_alive():
        thread.join(SECONDS_BETWEEN_ROWS)
        for message in mailbox.take():
            on_message(*message)
        if not stopped():
            continue
        if deadline is None:
            deadline = time.monotonic() + GRACE_S
            mailbox.ask_to_stop()
        elif time.monotonic() > deadline:
            return Stopped("its workers did not save their state in time")
    for message in mailbox.take():
        on_message(*message)
    return outcome[0] if outcome else None


def cause_of(error: Exception) -> BaseException:
    """The error of a worker, taken out of Ray's wrapper. If there are several, mistakes come first."""
    failures = getattr(error, "worker_failures", {})
    causes = [getattr(failure, "_base_exc", failure) for failure in failures.values()]
    return ([cause for cause in causes if is_mistake(cause)] or causes or [error])[0]
