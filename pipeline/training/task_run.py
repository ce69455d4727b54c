"""One training of one task, and the state that changes while it trains."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from hst.model import TaskModel
from hst.preprocessing import Preprocessing
from hst.protocols import total_loss
from pipeline.data.batches.streaming import AugmentImage, Split
from pipeline.kinds.kind import TaskKind
from pipeline.storage.errors import StorageError
from pipeline.tasks.recipe import Recipe, step_fault
from pipeline.training.memory import peak_memory_bytes
from pipeline.training.precision import resolve_precision
from pipeline.training.workers import Workers

Row = dict[str, float | int | str]


class TrainingError(RuntimeError):
    """A run cannot go on; the message names the task and the reason."""


class NotFiniteError(TrainingError):
    """The loss is no longer finite: the recipe's numbers are to blame."""


@dataclass(kw_only=True)
class TaskRun:
    """One training of one task, from its first epoch to its last."""

    task: str
    """The task's name. Every random draw is keyed by it and the seed."""
    seed: int
    """The seed of every random draw."""
    kind: TaskKind
    """What the task predicts; this decides its targets and metric."""
    model: TaskModel
    recipe: Recipe
    preprocessing: Preprocessing
    train: Split
    """The training split: ``train`` in a selection run, ``trainval`` in a final run."""
    augment_image: AugmentImage | None = None
    """Makes the pixels of each epoch's images; None if the recipe augments only batches."""
    validation: Split | None = None
    """Evaluated at intervals and after the last epoch, as ``val/...``; only in a selection run."""
    test: Split | None = None
    """Evaluated once, after the last epoch, as ``test/...``; only in a final run."""

    @property
    def batch_size(self) -> int:
        """Number of images in a step, over all workers."""
        return min(self.recipe.batch_size, self.train.num_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch; the last partial batch is dropped, as in the released code."""
        return self.train.num_samples // self.batch_size

    def check(self, num_workers: int) -> None:
        """Raises TrainingError if this recipe, data and number of workers do not allow a single step."""
        if (fault := step_fault(self.recipe, self.train.num_samples, num_workers)) is not None:
            raise TrainingError(f"{self.task}: {fault}")


@dataclass
class RunState:
    """A run and everything that changes while it trains. `state_dict` holds what an exact resume needs."""

    run: TaskRun
    optimizer: torch.optim.Optimizer
    epochs_done: int = 0
    steps_done: int = 0
    """Number of steps in the current epoch; together with `epochs_done` this is the data cursor."""
    loss_sums: dict[str, float] = field(default_factory=dict)
    """Sums over this epoch's steps and all workers: the minimised ``loss``, and each loss if there are several."""
    epoch_seconds: float = 0.0
    """Seconds spent on the current epoch's steps, without evaluations."""
    history: list[Row] = field(default_factory=list)
    """One row per epoch."""
    device_seconds: float = 0.0
    """Device time spent on training and evaluation, over all starts and all workers."""
    results: dict[str, Any] = field(default_factory=dict)
    """After the last epoch: metrics by name, what a metric keeps for pictures by ``<name>/<split>``, throughput."""
    device_part: float = 1.0
    """The share of the worker's time that counts as this run's; below 1 if other runs train in the same batch."""
    losses: dict[str, torch.Tensor] | None = None
    """This worker's sums in the current epoch, on the device until `sync`. After a restart the first worker
    starts from the saved sums, the others from 0."""
    counted_until: float = 0.0
    """The ``time.monotonic()`` until which time has been counted."""

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.run.recipe.epochs

    @property
    def cursor(self) -> dict[str, int]:
        """The place of the next image: an epoch and a position in its order."""
        return {"epoch": self.epochs_done, "position": self.steps_done * self.run.batch_size}

    def count_seconds(self, workers: Workers, *, steps: bool) -> None:
        """Adds the time since the last count: time of train steps if ``steps``, else of an evaluation."""
        now = time.monotonic()
        spent, self.counted_until = now - self.counted_until, now
        self.device_seconds += spent * workers.size * workers.device_share * self.device_part
        if steps:
            self.epoch_seconds += spent

    def begin_losses(self, workers: Workers) -> None:
        """Starts this worker's sums of an epoch's losses, from the saved sums after a restart."""
        self.losses = {
            name: torch.full((), 0.0 if workers.rank else total, dtype=torch.float64, device=workers.device)
            for name, total in (self.loss_sums or {"loss": 0.0}).items()
        }

    def add_losses(self, losses: dict[str, torch.Tensor], share: float) -> None:
        """Adds the losses of a part of a step. The part holds ``share`` of the global batch."""
        assert self.losses is not None
        parts = {name: loss for name, loss in losses.items() if name != "loss"}
        for name, loss in {"loss": total_loss(losses), **parts}.items():
            before = self.losses.get(name)
            self.losses[name] = (loss * share).double() if before is None else before + loss * share

    def sync(self, workers: Workers) -> None:
        """Brings ``loss_sums`` up to date; call it on every worker before saving the state in mid-epoch.

        Raises:
            NotFiniteError: The loss is not finite.
        """
        if self.losses is None:
            return
        summed = workers.all_reduce(torch.stack(list(self.losses.values()))).tolist()
        self.loss_sums = dict(zip(self.losses, summed, strict=True))
        if not math.isfinite(total := self.loss_sums["loss"]):
            run = self.run
            raise NotFiniteError(
                f"{run.task}: the training loss of epoch {self.epochs_done + 1} is {total / self.steps_done}; "
                f"try a smaller learning_rate than {run.recipe.learning_rate}, clip_norm=1, or precision=float32"
            )

    def end_epoch(self, row: Row) -> None:
        """Ends the current epoch and keeps ``row`` in the history."""
        self.history.append(row)
        self.epochs_done, self.steps_done = self.epochs_done + 1, 0
        self.loss_sums, self.epoch_seconds, self.losses = {}, 0.0, None

    def summarize(self, workers: Workers) -> None:
        """Records the results of a finished run: the metrics of its last row, throughput, memory and machine."""
        steady = self.history[1:] or self.history  # the first epoch also decodes images
        rate = sum(float(row["images_per_second"]) for row in steady) / len(steady)
        self.results |= {
            "metrics": {k: v for k, v in self.history[-1].items() if k.startswith(("val/", "test/"))},
            "images_per_second": rate,
            "device_seconds": self.device_seconds,
            "peak_memory_bytes": peak_memory_bytes(workers.device),
            "precision": resolve_precision(self.run.recipe.precision, workers.device),
            "memory": self.run.model.memory,
            "method": self.run.model.extractor.spec(),
            "head": self.run.model.head.spec(),
            "parameters": sum(p.numel() for p in self.run.model.parameters()),
            "threads": torch.get_num_threads(),
            "num_workers": workers.size,
            "device": torch.cuda.get_device_name(workers.device) if workers.device.type == "cuda" else "cpu",
        }

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values only, so that ``torch.load`` with weights_only reads it."""
        return {
            "model": self.run.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "cursor": self.cursor,
            "loss_sums": self.loss_sums,
            "epoch_seconds": self.epoch_seconds,
            "history": self.history,
            "device_seconds": self.device_seconds,
            "results": self.results,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.run.model.load_state_dict(state["model"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        cursor = state["cursor"]
        self.epochs_done, self.steps_done = cursor["epoch"], cursor["position"] // self.run.batch_size
        self.loss_sums, self.epoch_seconds = state["loss_sums"], state["epoch_seconds"]
        self.history, self.results = state["history"], state["results"]
        self.device_seconds = state["device_seconds"]


def is_mistake(cause: BaseException) -> bool:
    """Whether a retry would fail again. Storage that does not answer is no mistake: it may answer next time."""
    return isinstance(cause, (TrainingError, ValueError)) and not isinstance(cause, StorageError)
