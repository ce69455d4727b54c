"""An epoch of a run, as a generator: it yields the next part to compute, and is sent the answer.

A run therefore does not know whether its model computes alone, over several workers, or in one batch with other tasks'
models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hst.layers.drop_path import draw_path_scales
from hst.protocols import Outputs, Targets
from hst.randomness import generator
from pipeline.data.batches.streaming import Split
from pipeline.training.optimizer import learning_rate
from pipeline.training.precision import model_dtype
from pipeline.training.task_run import NotFiniteError, Row, RunState, TrainingError
from pipeline.training.workers import Workers


@dataclass(frozen=True)
class TrainPart:
    """A train step, or a part of one.

    The answer is the head's losses by name. Before it is given, the gradients of ``weight`` times the sum of these
    losses are added to those of the parameters.
    """

    state: RunState
    images: torch.Tensor
    """Normalised images on the device, (B, 3, H, W)."""
    targets: Targets
    """What the head's losses compare its outputs with."""
    path_scales: torch.Tensor | None
    """Drop-path factors, (paths, B); None without drop-path."""
    weight: float


@dataclass(frozen=True)
class EvalPart:
    """A batch to predict. The answer is the head's outputs."""

    state: RunState
    images: torch.Tensor
    """Normalised images on the device, (B, 3, H, W)."""


@dataclass(frozen=True)
class StatisticsPart:
    """A batch to take into the model's batch statistics (see `TaskModel.estimate_statistics`). It needs no answer."""

    state: RunState
    images: torch.Tensor
    """Normalised images on the device, (B, 3, H, W)."""
    number: int
    """The batch's number, from 1."""


@dataclass(frozen=True)
class Resting:
    """The run is between two steps, so its state can be saved. It needs no answer."""

    done: int
    """Steps and other batches of this epoch so far, the same on all workers; 0 if some workers lack this point."""


IMAGES_BEFORE_A_LOOK = 512
"""Number of training images that estimate the batch statistics before an evaluation in mid-training. It is bounded, so
that ten looks cost little. After the last epoch the whole training split does it."""
LEAST_IN_A_STATISTICS_BATCH = 16
"""Least number of images in a batch that estimates statistics, if there are as many: it is normalised by its own."""

Part = TrainPart | EvalPart | StatisticsPart
Answer = dict[str, torch.Tensor] | Outputs
Epoch = Generator[Part | Resting, Answer, None]


def epoch_of(state: RunState, workers: Workers) -> Epoch:
    """A run's epoch, from its cursor to its end, with its evaluations. It ends with `RunState.end_epoch`.

    Raises:
        TrainingError: A loss is not finite, or an evaluation missed images.
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
        **{f"train/{name}": total / run.steps_per_epoch for name, total in state.loss_sums.items()},
        "learning_rate": rate,
        "images_per_second": run.steps_per_epoch * run.batch_size / state.epoch_seconds,
    }
    last = epoch + 1 == run.recipe.epochs
    looks = run.validation is not None and run.recipe.is_validated(epoch + 1)
    done = run.steps_per_epoch
    if (looks or last) and run.recipe.batch_statistics == "estimated" and run.model.has_batch_statistics:
        done = yield from _estimate(state, workers, None if last else IMAGES_BEFORE_A_LOOK)
    if run.validation is not None and looks:
        row |= yield from _evaluate(state, run.validation, "val", workers, done)
    if run.test is not None and last:
        row |= yield from _evaluate(state, run.test, "test", workers, done)
    state.end_epoch(row)
    if last:
        state.summarize(workers)


def advance(epoch: Epoch, answer: Answer) -> Part | Resting | None:
    """What an epoch yields next, given the answer to its last part; None once it has ended."""
    try:
        return epoch.send(answer)
    except StopIteration:
        return None


def _train(state: RunState, workers: Workers) -> Epoch:
    run, recipe, epoch = state.run, state.run.recipe, state.epochs_done
    part_size = run.batch_size // recipe.accumulation_steps
    rates = run.model.path_rates(recipe.drop_path)
    parameters = list(run.model.parameters())
    state.begin_losses(workers)
    batches = run.train.train_batches(
        epoch=epoch,
        batch_size=part_size,
        seed_key=(run.seed, run.task, "order"),
        rank=workers.rank,
        world=workers.size,
        start_batch=state.steps_done * recipe.accumulation_steps,
        augment=run.augment_image,
    )
    augment = run.kind.augment_batch(
        recipe,
        run.preprocessing,
        run.model.head,
        seed=run.seed,
        task=run.task,
        epoch=epoch,
        batch_size=part_size,
        group=workers,
        dtype=model_dtype(recipe),
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
            share = len(images) / run.batch_size  # of the global batch; DDP averages, so the weight restores the sum
            losses = yield TrainPart(state, images, targets, own, share * workers.size)
            state.add_losses(losses, share)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        state.optimizer.step()
        state.steps_done += 1
        state.count_seconds(workers, steps=True)
        yield Resting(state.steps_done)


def _estimate(state: RunState, workers: Workers, at_most: int | None) -> Generator[Part | Resting, Answer, int]:
    """Estimates the model's batch statistics from the training images, as evaluation sees them, or ``at_most`` of them.

    Their draw is keyed by the epoch. An interrupted estimation starts again.

    Returns:
        Steps and batches of this epoch so far.
    """
    run, recipe = state.run, state.run.recipe
    least = max(run.batch_size // recipe.accumulation_steps, LEAST_IN_A_STATISTICS_BATCH)
    size = run.train.num_samples // max(1, run.train.num_samples // least)  # so that few images are left over
    batches = run.train.train_batches(
        epoch=state.epochs_done,
        batch_size=size,
        seed_key=(run.seed, run.task, "statistics"),
        rank=workers.rank,
        world=workers.size,
    )
    done = run.steps_per_epoch
    for number, batch in enumerate(islice(batches, at_most and max(1, at_most // size)), 1):
        images = run.preprocessing.normalize(workers.put(batch.images), model_dtype(recipe))
        yield StatisticsPart(state, images, number)
        state.count_seconds(workers, steps=False)
        done += 1
        yield Resting(done)
    return done


def _evaluate(
    state: RunState, split: Split, name: str, workers: Workers, done: int
) -> Generator[Part | Resting, Answer, dict[str, float]]:
    """The metrics of a split as ``<name>/<metric>``; over all workers, every sample counts once.

    ``done`` are the steps and batches of this epoch so far.
    An interrupted evaluation starts again, but the train steps before it are kept.
    """
    run = state.run
    metric = run.kind.metric(run.model.head, workers.device)
    batch_size = max(1, run.recipe.batch_size // workers.size)
    in_common = split.num_samples // workers.size // batch_size
    """Number of batches that every worker has. All workers can agree on something only after one of these."""
    batches = split.eval_batches(batch_size=batch_size, rank=workers.rank, world=workers.size)
    for number, batch in enumerate(batches, 1):
        images = run.preprocessing.normalize(workers.put(batch.images), model_dtype(run.recipe))  # uint8 until here
        outputs = yield EvalPart(state, images)
        metric.update(outputs, tree_map(workers.put, batch.labels))
        state.count_seconds(workers, steps=False)
        yield Resting(done + number if number <= in_common else 0)
    metric.merge(workers)
    if metric.seen != split.num_samples:
        raise TrainingError(
            f"{run.task}: {name} was evaluated on {metric.seen} images, not on the {split.num_samples} of its manifest"
        )
    state.count_seconds(workers, steps=False)
    state.results |= {f"{key}/{name}": value for key, value in metric.details().items()}
    found = {f"{name}/{key}": value for key, value in metric.compute().items()}
    if wrong := [f"{key} is {value}" for key, value in found.items() if not math.isfinite(value)]:
        raise NotFiniteError(f"{run.task}: after epoch {state.epochs_done + 1} {', '.join(wrong)}")
    return found
