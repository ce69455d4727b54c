"""Runs in every train worker of a unit: the loop, and the reports that Ray Train keeps."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from hst.backbone import Backbone
from pipeline.cluster.system_metrics import sample_system_metrics
from pipeline.storage.files import StorageError
from pipeline.tasks.recipe import Recipe
from pipeline.training import checkpoints
from pipeline.training.loop import fit
from pipeline.training.on_ray.mailbox import WorkersEnd
from pipeline.training.precision import model_dtype
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import RunState
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

STEPS_BETWEEN_LOOKS = 4
"""Number of steps, in the middle of an epoch, after which several workers agree on whether to report. A single worker
looks at every step."""


def work(config: dict[str, Any]) -> None:
    """Trains a unit; ``config`` comes from `pipeline.training.on_ray.driver.train_unit`."""
    context = ray.train.get_context()
    torch.set_num_threads(config["threads"])
    workers = Workers(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        device_share=config["device_share"],
    )
    specs = [RunSpec(**spec) for spec in config["specs"]]
    backbone = Backbone.from_arrays(specs[0].backbone_name, ray.get(config["backbone"]), specs[0].backbone_identity)
    backbone.to(workers.device, model_dtype(Recipe.from_dict(specs[0].recipe)))  # one precision for the whole unit
    runs = [build_run(spec, backbone, workers, cache_shards=config["cache_shards"]) for spec in specs]
    resume = _resume_states(config["resume"])
    reporter = _Reporter(workers, config, resume)
    fit(runs, workers=workers, resume=resume, report=reporter, pause=reporter.pause)


def _resume_states(given: ray.ObjectRef | None) -> list[dict[str, Any]] | None:
    """The states to resume from.

    If Ray has changed the number of workers since the driver started them, these come from the latest checkpoint of
    this start. Otherwise they are the states that the driver found before the start.

    Raises:
        StorageError: That checkpoint is not whole. The driver then finds the next best.
    """
    latest = ray.train.get_checkpoint()
    if latest is None:
        return None if given is None else ray.get(given)
    with latest.as_directory() as folder:
        checkpoint = checkpoints.find(folder)
        if checkpoint is None:
            raise StorageError(f"{latest.path}: the latest checkpoint is not whole")
        return checkpoint.states()


class _Reporter:
    """Saves and reports at most every few seconds. A report is a barrier, so all workers decide alike."""

    def __init__(self, workers: Workers, config: dict[str, Any], resume: list[dict[str, Any]] | None) -> None:
        self.workers = workers
        self.mailbox = WorkersEnd(config["mailbox"])
        self.stopping = False
        self.tells_workers = config["tells_workers"]
        self.seconds = config["seconds_between_reports"]
        self.seconds_to_pause = config["seconds_between_pauses"]
        self.sent = [state["cursor"]["epoch"] for state in resume] if resume else None
        self.last = time.monotonic()

    def pause(self, step: int) -> bool:
        """Whether to report after this step of an epoch."""
        looks = self.workers.size == 1 or step % STEPS_BETWEEN_LOOKS == 0
        return looks and self._is_due(self.seconds_to_pause)

    def _is_due(self, seconds: float) -> bool:
        """Whether ``seconds`` have passed since the last report or the driver wants to stop. The first worker
        decides."""
        if self.workers.rank == 0:
            self.stopping = self.mailbox.is_stopping()
        due = [float(time.monotonic() - self.last >= seconds), float(self.stopping)]
        if self.workers.size > 1:
            agreed = torch.tensor(due, device=self.workers.device)
            dist.broadcast(agreed, src=0)
            due = agreed.tolist()
        self.stopping = bool(due[1])
        return any(due)

    def __call__(self, states: list[RunState], finished: bool) -> None:
        if not finished and not self._is_due(self.seconds):
            return
        if self.workers.rank:
            ray.train.report({})
        else:
            with tempfile.TemporaryDirectory() as folder:
                checkpoints.save(Path(folder), states)
                metrics = {"epochs_done": [state.epochs_done for state in states]}
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
            self._send(states)
        self.last = time.monotonic()
        if self.stopping and not finished:
            if self.workers.size > 1:
                dist.barrier()  # wait for the first worker's checkpoint: Ray ends all workers as soon as one raises
            raise Stopped("the driver was told to stop; the state is saved")

    def _send(self, states: list[RunState]) -> None:
        """Sends new rows to the driver. They must be safe in a checkpoint already."""
        sent = self.sent or [0] * len(states)
        system = sample_system_metrics() | ({"num_workers": self.workers.size} if self.tells_workers else {})
        for i, state in enumerate(states):
            rows = state.history[sent[i] :]
            if rows:
                self.mailbox.put(i, [*rows[:-1], {**rows[-1], **system}])
        self.sent = [state.epochs_done for state in states]
