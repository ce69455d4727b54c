"""The training loop: plain torch, every method and task kind, any number of workers. It knows neither Ray nor MLflow.

`fit` takes a list of task runs on one frozen backbone, trains them epoch by epoch, and is given what it reports to.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hst.drop_path import draw_path_scales
from hst.model import TaskModel
from hst.preprocessing import Preprocessing
from hst.randomness import generator
from pipeline.data.streaming import AugmentImage, Split
from pipeline.evaluation.classification import METRICS
from pipeline.tasks.recipe import Recipe, step_fault
from pipeline.training.batch_augmentation import BatchAugmentation
from pipeline.training.memory import peak_memory_bytes
from pipeline.training.optimizer import build_optimizer, learning_rate
from pipeline.training.workers import Workers

Row = dict[str, float | int | str]


class TrainingError(RuntimeError):
    """A run that cannot go on, with the task and the reason."""


class NotFiniteError(TrainingError):
    """The loss is no number any more: the fault of a recipe's numbers."""


@dataclass(kw_only=True)
class TaskRun:
    """One training of one task, from its first epoch to its last."""

    task: str
    """The task's name; part of the key of every random draw."""
    seed: int
    """The other part."""
    model: TaskModel
    recipe: Recipe
    preprocessing: Preprocessing
    train: Split
    """What is trained on: ``train`` in a selection run, ``trainval`` in a final run."""
    augment_image: AugmentImage | None = None
    """Makes the pixels of each epoch's images, where the recipe augments images and not only batches."""
    validation: Split | None = None
    """Evaluated now and then and after the last epoch, as ``val/...``; only in a selection run."""
    test: Split | None = None
    """Evaluated once, after the last epoch, as ``test/...``; only in a final run."""
    kind: str = "classification"
    """The task kind, which decides the metric."""

    @property
    def batch_size(self) -> int:
        """Images a step, over all workers."""
        return min(self.recipe.batch_size, self.train.num_samples)

    @property
    def steps_per_epoch(self) -> int:
        """The last partial batch is dropped, as in the released code."""
        return self.train.num_samples // self.batch_size

    def check(self, num_workers: int) -> None:
        """Raises TrainingError where a step could not be made with this recipe, data and number of workers."""
        if (fault := step_fault(self.recipe, self.train.num_samples, num_workers)) is not None:
            raise TrainingError(f"{self.task}: {fault}")


@dataclass
class RunState:
    """A run and everything that changes while it trains; `state_dict` is what an exact resume needs."""

    run: TaskRun
    optimizer: torch.optim.Optimizer
    epochs_done: int = 0
    steps_done: int = 0
    """Of the epoch that is under way; with `epochs_done` the data cursor."""
    loss_sum: float = 0.0
    """Over those steps and all workers."""
    epoch_seconds: float = 0.0
    """Spent on those steps; what evaluations take is not in it."""
    history: list[Row] = field(default_factory=list)
    """One row an epoch."""
    device_seconds: float = 0.0
    """Spent training and evaluating, over all starts and the workers that each had."""
    results: dict[str, Any] = field(default_factory=dict)
    """After the last epoch: metrics by name, ``confusion`` by split, throughput."""

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.run.recipe.epochs

    @property
    def cursor(self) -> dict[str, int]:
        """The next image's place: an epoch and a position in its order."""
        return {"epoch": self.epochs_done, "position": self.steps_done * self.run.batch_size}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only (``torch.load`` with weights_only reads it)."""
        return {
            "model": self.run.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "cursor": self.cursor,
            "loss_sum": self.loss_sum,
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
        self.loss_sum, self.epoch_seconds = state["loss_sum"], state["epoch_seconds"]
        self.history, self.results = state["history"], state["results"]
        self.device_seconds = state["device_seconds"]


Report = Callable[[list[RunState], bool], None]
"""Called on every worker after every epoch with all run states, and whether this was the last one."""

Pause = Callable[[int], bool]
"""Asked on every worker after every step of an epoch and, counted on, after every batch of its evaluation that all
workers have: whether to report now, too."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    return ("bfloat16" if device.type == "cuda" else "float32") if precision == "auto" else precision


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
    for run in runs:
        run.check(workers.size)
    states = [RunState(run, build_optimizer(run.model, run.recipe)) for run in runs]
    for state, saved in zip(states, resume or [], strict=bool(resume)):
        state.load_state_dict(saved)
    wrapped = [_distribute(state.run.model, workers) for state in states]
    for epoch in range(max(state.run.recipe.epochs for state in states)):
        active = [i for i, state in enumerate(states) if state.epochs_done == epoch and not state.finished]
        for i in active:
            _run_epoch(states[i], wrapped[i], epoch, workers, pause, lambda: report(states, False))
        if active:
            report(states, all(state.finished for state in states))
    return states


def _distribute(model: TaskModel, workers: Workers) -> nn.Module:
    """Only the task's parameters are synchronised: the backbone is no submodule, and batch norm is global already."""
    if workers.size == 1:
        return model
    device_ids = [workers.device.index] if workers.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _run_epoch(
    state: RunState, model: nn.Module, epoch: int, workers: Workers, pause: Pause, report: Callable[[], None]
) -> None:
    run, counted = state.run, time.monotonic()
    began = counted - state.epoch_seconds
    rate = learning_rate(run.recipe, epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = rate

    def count_seconds() -> None:
        nonlocal counted
        now = time.monotonic()
        state.device_seconds += (now - counted) * workers.size * workers.device_share
        counted = now

    def save_steps(loss_sum: torch.Tensor) -> None:
        state.loss_sum = float(workers.all_reduce(loss_sum.clone()))
        count_seconds()
        state.epoch_seconds = counted - began
        _check_finite(run, epoch, state.loss_sum / state.steps_done)

    def after_step(loss_sum: torch.Tensor) -> None:
        state.steps_done += 1
        if state.steps_done < run.steps_per_epoch and pause(state.steps_done):
            save_steps(loss_sum)
            report()

    def after_batch(batches: int) -> None:
        """Of an evaluation, which is begun again where it is stopped; the steps before it are not."""
        if pause(state.steps_done + batches):
            count_seconds()
            report()

    save_steps(_train_epoch(state, model, epoch, workers, after_step))
    images = run.steps_per_epoch * run.batch_size
    row: Row = {
        "epoch": epoch + 1,
        "train/loss": state.loss_sum / run.steps_per_epoch,
        "learning_rate": rate,
        "images_per_second": images / state.epoch_seconds,
    }
    last = epoch + 1 == run.recipe.epochs
    if run.validation is not None and run.recipe.is_validated(epoch + 1):
        row.update(_evaluate(state, run.validation, "val", workers, after_batch))
    if run.test is not None and last:
        row.update(_evaluate(state, run.test, "test", workers, after_batch))
    count_seconds()
    state.epochs_done, state.steps_done = epoch + 1, 0
    state.loss_sum = state.epoch_seconds = 0.0
    state.history.append(row)
    if last:
        state.results.update(_summary(state, workers))


def _train_epoch(
    state: RunState, model: nn.Module, epoch: int, workers: Workers, after_step: Callable[[torch.Tensor], None]
) -> torch.Tensor:
    """From the cursor to the epoch's end; this worker's sum of the steps' losses, which stay on the device until then.

    `after_step` is given the sum so far; the first worker's begins with what a restart brought.
    """
    run, recipe = state.run, state.run.recipe
    part_size = run.batch_size // recipe.accumulation_steps
    rates = run.model.path_rates(recipe.drop_path)
    parameters = list(run.model.parameters())
    before = 0.0 if workers.rank else state.loss_sum
    total = torch.tensor(before, dtype=torch.float64, device=workers.device)
    batches = run.train.train_batches(
        epoch=epoch,
        batch_size=part_size,
        seed_key=(run.seed, run.task, "order"),
        rank=workers.rank,
        world=workers.size,
        start_batch=state.steps_done * recipe.accumulation_steps,
        augment=run.augment_image,
    )
    augment = BatchAugmentation(
        recipe=recipe,
        preprocessing=run.preprocessing,
        num_classes=run.model.num_classes,
        seed=run.seed,
        task=run.task,
        epoch=epoch,
        batch_size=part_size,
        workers=workers,
        dtype=_dtype(recipe),
    )
    model.train()
    for step in range(state.steps_done, run.steps_per_epoch):
        state.optimizer.zero_grad(set_to_none=True)
        scales = draw_path_scales(rates, run.batch_size, generator(run.seed, run.task, "drop_path", epoch, step))
        for _ in range(recipe.accumulation_steps):
            batch = next(batches)
            images, targets = augment(batch)
            columns = batch.positions - step * run.batch_size  # this worker's samples within the global batch
            own = None if scales is None else scales[:, columns].to(workers.device)
            with _autocast(recipe, workers.device):
                loss = model(images, targets, own, label_smoothing=recipe.label_smoothing)["loss"]
            share = len(targets) / run.batch_size  # of the global batch: DDP averages, so workers' sum is restored
            (loss * (share * workers.size)).backward()
            total += loss.detach() * share
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        state.optimizer.step()
        after_step(total)
    return total


def _check_finite(run: TaskRun, epoch: int, mean: float) -> None:
    if not math.isfinite(mean):
        raise NotFiniteError(
            f"{run.task}: the training loss of epoch {epoch + 1} is {mean}; try a smaller learning_rate than "
            f"{run.recipe.learning_rate}, clip_norm=1, or precision=float32"
        )


def _to_device(
    run: TaskRun, images: torch.Tensor, labels: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pixels cross to the device; normalisation happens there."""
    pixels = images.to(device, non_blocking=True)
    return run.preprocessing.normalize(pixels, _dtype(run.recipe)), labels.to(device, non_blocking=True)


def _dtype(recipe: Recipe) -> torch.dtype:
    """Of the images; autocast makes less of them where it is on."""
    return torch.float64 if recipe.precision == "float64" else torch.float32


@contextlib.contextmanager
def _autocast(recipe: Recipe, device: torch.device) -> Iterator[None]:
    enabled = resolve_precision(recipe.precision, device) == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        yield


def _evaluate(
    state: RunState, split: Split, name: str, workers: Workers, after_batch: Callable[[int], None]
) -> dict[str, float]:
    """Metrics of a split as ``<name>/<metric>``, every sample counted once over all workers."""
    run = state.run
    metric = METRICS[run.kind](run.model.num_classes, workers.device)
    batch_size = max(1, run.recipe.batch_size // workers.size)
    in_common = split.num_samples // workers.size // batch_size
    """Batches that every worker has: after these they can agree on something."""
    batches = split.eval_batches(batch_size=batch_size, rank=workers.rank, world=workers.size)
    for number, batch in enumerate(batches, 1):
        images, labels = _to_device(run, batch.images, batch.labels, workers.device)
        with _autocast(run.recipe, workers.device):
            metric.update(run.model.predict(images), labels)
        if number <= in_common:
            after_batch(number)
    workers.all_reduce(metric.merge_tensor)
    if int(metric.counts.sum()) != split.num_samples:
        raise TrainingError(
            f"{run.task}: {name} was evaluated on {int(metric.counts.sum())} images, not on the "
            f"{split.num_samples} of its manifest"
        )
    state.results[f"confusion/{name}"] = metric.counts.tolist()
    return {f"{name}/{key}": value for key, value in metric.compute().items()}


def _summary(state: RunState, workers: Workers) -> dict[str, Any]:
    """What a finished run records beside its last row."""
    steady = state.history[1:] or state.history  # the first epoch also decodes
    rate = sum(float(row["images_per_second"]) for row in steady) / len(steady)
    return {
        "metrics": {k: v for k, v in state.history[-1].items() if k.startswith(("val/", "test/"))},
        "images_per_second": rate,
        "device_seconds": state.device_seconds,
        "peak_memory_bytes": peak_memory_bytes(workers.device),
        "precision": resolve_precision(state.run.recipe.precision, workers.device),
        "memory": state.run.model.memory,
        "parameters": sum(p.numel() for p in state.run.model.parameters()),
        "threads": torch.get_num_threads(),
        "num_workers": workers.size,
        "device": torch.cuda.get_device_name(workers.device) if workers.device.type == "cuda" else "cpu",
    }
