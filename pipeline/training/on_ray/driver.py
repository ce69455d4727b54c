"""Where Ray Train is spoken to (with `process_group` and `mailbox` beside it): runs a unit of task runs on a group of
workers and brings its results back.

A killed worker is restarted from its last report; a mistake in the data or the recipe is not tried again. Of a range
of workers, Ray itself ends them and starts others where a node has come; after one has gone, the unit is started again
here, with those that can be placed then. Rows reach the driver through a mailbox as they are made; the checkpoint has
all of them, too, so that none is lost with that.
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
"""In a row, without a report between them: a long training on machines that come and go may have any number."""
SECONDS_BETWEEN_REPORTS = 2.0
"""At least. An epoch may be shorter than a report, a barrier and a checkpoint; several rows then travel together."""
SECONDS_BETWEEN_PAUSES = 20.0
"""At least, to a report in the middle of an epoch, which is for those that long ones lose by."""
SECONDS_BETWEEN_RESIZES = 60.0
"""In which Ray looks whether a range of workers can have more; it costs them what they did since the last report."""

SECONDS_BETWEEN_ROWS = 0.5
"""In which the driver looks for new rows, and whether it is to stop."""
GRACE_S = 20.0
"""For workers that are told to stop, to save their state."""

OnRows = Callable[[int, list[dict[str, Any]]], None]
"""Called on the driver with the index of a run in its unit and its new rows; a row may come again after a restart."""


def put_backbone(backbone: Backbone) -> ray.ObjectRef:
    """The frozen weights in Ray's object store: one copy a node, shared by all workers there."""
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
    """Train a unit to its end and return one result a run, in order.

    Args:
        specs: the runs; all on one backbone.
        folder: URI of this unit alone: with a fingerprint of all that it depends on in its name. Training goes on from
            the furthest checkpoint below it, whoever wrote that.
        attempt: the lease's. Each writes in a folder of its own below ``folder``, so that the workers of a driver that
            was taken for dead change nothing for those of the next.
        backbone: of `put_backbone`.
        plan: workers and their resources.
        on_rows: told about new rows.
        say: prints a line.
        stopped: once true, the workers save their state and end, within GRACE_S; else they end with the driver's
            connection to Ray.
        cache_shards: see `build_run`.
        seconds_between_reports: at epochs' ends; a killed worker loses what it did since the last report.
        seconds_between_pauses: until a report in the middle of an epoch.
        seconds_between_resizes: between two looks at whether a range of workers can have more.

    Raises:
        TrainingError: the unit failed, with the cause; what it had reported stays in storage.
        Stopped: it was told to stop.
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
            # The state itself and not its place: workers of a driver that was taken for dead may still replace that.
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
    """Of a unit that has ended; all rows are told once more.

    Raises:
        TrainingError: it has not.
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
    """Runs ``worker`` with ``config`` on a plan's workers; what they report is kept in ``folder``, a URI, by ``name``.

    It fails as soon as one of them does.
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
    """``trainer.fit`` in a thread of its own; messages are handed on meanwhile. What went wrong, or None.

    Once it is ``stopped``, the workers are asked to stop, and have GRACE_S for it.
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
    """What went wrong on a worker, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", {})
    causes = [getattr(failure, "_base_exc", failure) for failure in failures.values()]
    return ([cause for cause in causes if is_mistake(cause)] or causes or [error])[0]
