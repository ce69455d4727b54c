"""Where Ray Train is spoken to (with `process_group` beside it): runs a unit of task runs on a group of workers and
brings its results back.

A killed worker is restarted from its last report; a mistake in the data or the recipe is not tried again. Reports
reach the driver through a queue as they are made; the checkpoint has all of them once more, so that none is lost with
a queue.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hst.backbone import Backbone
from pipeline.resources import Plan
from pipeline.storage import StorageError, ray_filesystem
from pipeline.system_metrics import sample_system_metrics
from pipeline.training.loop import RunState, TrainingError, fit
from pipeline.training.process_group import OwnAddressConfig
from pipeline.training.unit import RunResult, RunSpec, build_run, load_unit_results, load_unit_state, save_unit
from pipeline.training.workers import Workers

MAX_RESTARTS = 3
SECONDS_BETWEEN_REPORTS = 2.0
"""At least. An epoch may be shorter than a report, a barrier and a checkpoint; several rows then travel together."""
SECONDS_BETWEEN_PAUSES = 20.0
"""At least, to a report in the middle of an epoch, which is for those that long ones lose by."""
STEPS_BETWEEN_LOOKS = 4
"""In the middle of an epoch, several workers agree so often on whether to report; one worker looks at every step."""

OnRows = Callable[[int, list[dict[str, Any]]], None]
"""Called on the driver with the index of a run in its unit and its new rows; a row may come again after a restart."""


class Stopped(Exception):
    """The fan-out was told to stop; run again, it goes on."""


def put_backbone(backbone: Backbone) -> ray.ObjectRef:
    """The frozen weights in Ray's object store: one copy a node, shared by all workers there."""
    return ray.put(backbone.arrays())


def train_unit(
    specs: Sequence[RunSpec],
    *,
    name: str,
    backbone: ray.ObjectRef,
    plan: Plan,
    storage: str,
    on_rows: OnRows,
    stop: threading.Event | None = None,
    cache_shards: bool = False,
    seconds_between_reports: float = SECONDS_BETWEEN_REPORTS,
    seconds_between_pauses: float = SECONDS_BETWEEN_PAUSES,
) -> list[RunResult]:
    """Train a unit to its end and return one result a run, in order.

    Args:
        specs: the runs; all on one backbone.
        name: of the unit, with a fingerprint in it: the same name and storage go on from the last checkpoint.
        backbone: of `put_backbone`.
        storage: URI under which Ray Train keeps checkpoints.
        on_rows: told about new rows.
        stop: once set, the unit is given up within a second; its workers end with the driver's connection to Ray.
        cache_shards: see `build_run`.
        seconds_between_reports: at epochs' ends; a killed worker loses what it did since the last report.
        seconds_between_pauses: until a report in the middle of an epoch.

    Raises:
        TrainingError: the unit failed, with the cause; what it had reported stays in storage.
        Stopped: ``stop`` was set.
    """
    stop = stop or threading.Event()
    if stop.is_set():  # a process that ends while Ray is about to start workers for it is aborted by Ray
        raise Stopped(name)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # lives and dies with the driver's node
    filesystem, path = ray_filesystem(storage)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "specs": [spec.to_dict() for spec in specs],
            "backbone": backbone,
            "threads": plan.cpus_per_worker,
            "device_share": plan.gpus_per_worker or 1.0,
            "queue": queue,
            "cache_shards": cache_shards,
            "seconds_between_reports": seconds_between_reports,
            "seconds_between_pauses": seconds_between_pauses,
        },
        torch_config=OwnAddressConfig(backend="gloo" if plan.shares_gpu or not plan.gpus_per_worker else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=plan.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": plan.cpus_per_worker,
                **({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    try:
        result = _fit_with_restarts(trainer, name, queue, on_rows, stop)
    finally:
        queue.shutdown(force=True)
    if result.checkpoint is None:
        raise TrainingError(f"{name}: training ended without a checkpoint in {storage}")
    with result.checkpoint.as_directory() as folder:
        results = load_unit_results(Path(folder))
    for i, run in enumerate(results):
        on_rows(i, run.history)
    return results


def _fit_with_restarts(
    trainer: TorchTrainer, name: str, queue: Queue, on_rows: OnRows, stop: threading.Event
) -> ray.train.Result:
    """``trainer.fit`` in a thread of its own, restarted after lost workers; rows are handed on meanwhile."""
    for attempt in range(MAX_RESTARTS + 1):
        outcome: dict[str, Any] = {}

        def target(outcome: dict[str, Any] = outcome) -> None:
            try:
                outcome["result"] = trainer.fit()
            except Exception as error:
                outcome["error"] = error

        thread = threading.Thread(target=target, name=f"fit {name}", daemon=True)
        thread.start()
        while thread.is_alive():
            _hand_on(queue, on_rows, timeout=0.5)
            if stop.is_set():
                raise Stopped(name)
        _hand_on(queue, on_rows, timeout=0)
        if "result" in outcome:
            return outcome["result"]
        cause = _cause(outcome["error"])
        if _is_mistake(cause):
            raise TrainingError(str(cause)) from cause
        if attempt == MAX_RESTARTS:
            raise TrainingError(f"{name}: failed {attempt + 1} times, at last with {cause!r}") from cause
        print(
            f"{name}: {type(cause).__name__}; starting again from the last report ({attempt + 1} of {MAX_RESTARTS})",
            flush=True,
        )
    raise AssertionError("unreachable")


def _cause(error: Exception) -> BaseException:
    """What went wrong on a worker, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", {})
    causes = [getattr(failure, "_base_exc", failure) for failure in failures.values()]
    return ([cause for cause in causes if _is_mistake(cause)] or causes or [error])[0]


def _is_mistake(cause: BaseException) -> bool:
    """Whether trying again would end the same; storage that does not answer may answer next time."""
    return isinstance(cause, (TrainingError, ValueError)) and not isinstance(cause, StorageError)


def _hand_on(queue: Queue, on_rows: OnRows, *, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            run, rows = queue.get(timeout=max(0.0, deadline - time.monotonic())) if timeout else queue.get(block=False)
        except Empty:
            return
        on_rows(run, rows)


def _worker(config: dict[str, Any]) -> None:
    """Runs in every train worker."""
    context = ray.train.get_context()
    torch.set_num_threads(config["threads"])
    workers = Workers(rank=context.get_world_rank(), size=context.get_world_size(), device=ray.train.torch.get_device())
    specs = [RunSpec(**spec) for spec in config["specs"]]
    backbone = Backbone.from_arrays(specs[0].backbone_name, ray.get(config["backbone"]), specs[0].backbone_identity)
    precision = torch.float64 if any(spec.recipe["precision"] == "float64" for spec in specs) else torch.float32
    backbone.to(workers.device, precision)
    runs = [build_run(spec, backbone, workers, cache_shards=config["cache_shards"]) for spec in specs]
    resume = None
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            resume = load_unit_state(Path(folder))
    reporter = _Reporter(workers, config, resume)
    fit(runs, workers=workers, resume=resume, report=reporter, pause=reporter.pause)


class _Reporter:
    """Saves and reports at most every few seconds; all workers decide alike, as a report is a barrier."""

    def __init__(self, workers: Workers, config: dict[str, Any], resume: list[dict[str, Any]] | None) -> None:
        self.workers = workers
        self.queue: Queue = config["queue"]
        self.seconds = config["seconds_between_reports"]
        self.seconds_to_pause = config["seconds_between_pauses"]
        self.sent = [state["cursor"]["epoch"] for state in resume] if resume else None
        self.last = time.monotonic()

    def pause(self, step: int) -> bool:
        """Whether to report after this step of an epoch."""
        looks = self.workers.size == 1 or step % STEPS_BETWEEN_LOOKS == 0
        return looks and self._have_passed(self.seconds_to_pause)

    def _have_passed(self, seconds: float) -> bool:
        """Since the last report, by the first worker's clock."""
        due = time.monotonic() - self.last >= seconds
        if self.workers.size == 1:
            return due
        agreed = torch.tensor([float(due)], device=self.workers.device)
        dist.broadcast(agreed, src=0)
        return bool(agreed)

    def __call__(self, states: list[RunState], finished: bool) -> None:
        if not finished and not self._have_passed(self.seconds):
            return
        if self.workers.rank:
            ray.train.report({})
        else:
            with tempfile.TemporaryDirectory() as folder:
                save_unit(Path(folder), states)
                metrics = {"epochs_done": [state.epochs_done for state in states]}
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
            self._send(states)
        self.last = time.monotonic()

    def _send(self, states: list[RunState]) -> None:
        """Rows go to the driver once they are safe in a checkpoint."""
        sent = self.sent or [0] * len(states)
        system = sample_system_metrics()
        for i, state in enumerate(states):
            rows = state.history[sent[i] :]
            if rows:
                self.queue.put((i, [*rows[:-1], {**rows[-1], **system}]))
        self.sent = [state.epochs_done for state in states]
