"""An epoch of a run, as a generator: it says what is to be computed next and is sent what comes out.

So a run does not know whether its model computes alone, over several workers, or in one batch with other tasks' models.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import nn

from hst.layers.drop_path import draw_path_scales
from hst.randomness import generator
from pipeline.data.batches.streaming import Split
from pipeline.evaluation.classification import METRICS
from pipeline.tasks.recipe import Recipe
from pipeline.training.batch_augmentation import BatchAugmentation
from pipeline.training.optimizer import learning_rate
from pipeline.training.task_run import Row, RunState, TrainingError
from pipeline.training.workers import Workers


@dataclass(frozen=True)
class TrainPart:
    """A step, or a part of one; to be answered with its loss once the gradients of ``weight`` times it are added up."""

    state: RunState
    images: torch.Tensor
    """Normalised, on the device, (B, 3, H, W)."""
    targets: torch.Tensor
    """(B,) or (B, classes)."""
    path_scales: torch.Tensor | None
    weight: float


@dataclass(frozen=True)
class EvalPart:
    """A batch to be predicted; to be answered with its logits (B, classes)."""

    state: RunState
    images: torch.Tensor
    """Normalised, on the device, (B, 3, H, W)."""


Part = TrainPart | EvalPart
Whole = int
"""What a run says between two steps: its state can be saved. The number tells, the same on all workers, how many steps
and batches of the evaluation have been made in this epoch; 0 where not all workers come here."""
Epoch = Generator[Part | Whole, torch.Tensor | None, None]


def epoch_of(state: RunState, workers: Workers) -> Epoch:
    """A run's epoch from its cursor to its end, its evaluations too; after it `RunState.end_epoch` was called.

    Raises:
        TrainingError: a loss that is not finite, or images that were missed.
    """
    run, epoch = state.run, state.epochs_done
    state.counted_until = time.monotonic()
    rate = learning_rate(run.recipe, epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    yield from _train(state, workers)
    state.sync(workers)
    state.count_seconds(workers, steps=True)
    row: Row = {
        "epoch": epoch + 1,
        "train/loss": state.loss_sum / run.steps_per_epoch,
        "learning_rate": rate,
        "images_per_second": run.steps_per_epoch * run.batch_size / state.epoch_seconds,
    }
    last = epoch + 1 == run.recipe.epochs
    if run.validation is not None and run.recipe.is_validated(epoch + 1):
        row |= yield from _evaluate(state, run.validation, "val", workers)
    if run.test is not None and last:
        row |= yield from _evaluate(state, run.test, "test", workers)
    state.end_epoch(row)
    if last:
        state.summarize(workers)


def advance(epoch: Epoch, answer: torch.Tensor | None) -> Part | Whole | None:
    """What an epoch says next, given the answer to the part that it has said last; None once it has ended."""
    try:
        return epoch.send(answer)
    except StopIteration:
        return None


def _train(state: RunState, workers: Workers) -> Epoch:
    run, recipe, epoch = state.run, state.run.recipe, state.epochs_done
    part_size = run.batch_size // recipe.accumulation_steps
    rates = run.model.path_rates(recipe.drop_path)
    parameters = list(run.model.parameters())
    before = 0.0 if workers.rank else state.loss_sum
    state.losses = torch.full((), before, dtype=torch.float64, device=workers.device)
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
    run.model.train()
    for step in range(state.steps_done, run.steps_per_epoch):
        state.optimizer.zero_grad(set_to_none=True)
        scales = draw_path_scales(rates, run.batch_size, generator(run.seed, run.task, "drop_path", epoch, step))
        for _ in range(recipe.accumulation_steps):
            batch = next(batches)
            images, targets = augment(batch)
            columns = batch.positions - step * run.batch_size  # this worker's samples within the global batch
            own = None if scales is None else workers.put(scales[:, columns])
            share = len(targets) / run.batch_size  # of the global batch: DDP averages, so workers' sum is restored
            loss = yield TrainPart(state, images, targets, own, share * workers.size)
            assert loss is not None
            state.losses += loss * share
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        state.optimizer.step()
        state.steps_done += 1
        state.count_seconds(workers, steps=True)
        yield state.steps_done


def _evaluate(
    state: RunState, split: Split, name: str, workers: Workers
) -> Generator[Part | Whole, torch.Tensor | None, dict[str, float]]:
    """Metrics of a split as ``<name>/<metric>``, every sample counted once over all workers. One that is stopped is
    begun again; the steps before it are not."""
    run = state.run
    metric = METRICS[run.kind](run.model.num_classes, workers.device)
    batch_size = max(1, run.recipe.batch_size // workers.size)
    in_common = split.num_samples // workers.size // batch_size
    """Batches that every worker has: after these they can agree on something."""
    batches = split.eval_batches(batch_size=batch_size, rank=workers.rank, world=workers.size)
    for number, batch in enumerate(batches, 1):
        images = run.preprocessing.normalize(workers.put(batch.images), _dtype(run.recipe))  # uint8 till there
        logits = yield EvalPart(state, images)
        assert logits is not None
        metric.update(logits, workers.put(batch.labels))
        state.count_seconds(workers, steps=False)
        yield state.steps_done + number if number <= in_common else 0
    workers.all_reduce(metric.merge_tensor)
    if int(metric.counts.sum()) != split.num_samples:
        raise TrainingError(
            f"{run.task}: {name} was evaluated on {int(metric.counts.sum())} images, not on the "
            f"{split.num_samples} of its manifest"
        )
    state.count_seconds(workers, steps=False)
    state.results[f"confusion/{name}"] = metric.counts.tolist()
    return {f"{name}/{key}": value for key, value in metric.compute().items()}


def _dtype(recipe: Recipe) -> torch.dtype:
    """Of the images; autocast makes less of them where it is on."""
    return torch.float64 if recipe.precision == "float64" else torch.float32
