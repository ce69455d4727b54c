"""What a task predicts: a kind joins an annotation, a head, its augmentation, a metric and pictures.

A new kind needs its own file, a line in `pipeline.kinds.KINDS`, and its measure in `pipeline.tasks.kinds`.
docs/extending.md shows one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from hst.lookup import look_up
from hst.preprocessing import Preprocessing
from hst.protocols import Targets
from pipeline.data.batches.streaming import AugmentImage, Batch
from pipeline.evaluation.metric import Group, Metric
from pipeline.kinds import KINDS
from pipeline.tasks.recipe import Recipe


class AugmentBatch(Protocol):
    """Turns a worker's part of a batch into what the model is trained on."""

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Targets]:
        """Turns uint8 images and labels into normalised images (b, 3, S, S) and targets, on the worker's device.

        Every worker calls it for every batch, in order.
        """
        ...


class TaskKind(Protocol):
    """One kind of task. It has no state: its methods are given all that a run needs.

    A ``head`` is always the one that the kind's `head_spec` describes.
    """

    pictures: str
    """``module:function`` that draws an evaluation's `Metric.details`:
    ``(details, class_names, folder, title=...) -> the PNG files that it wrote there``."""

    def head_spec(self, recipe: Recipe, class_names: Sequence[str]) -> dict[str, Any]:
        """The head of a task: ``{"kind": a key of hst.heads.HEADS, ...}``."""
        ...

    def prepare_head(self, head: Any, recipe: Recipe) -> None:
        """Sets the recipe's options of the head's losses, which are not part of the head's `spec`."""
        ...

    def augment_image(
        self, recipe: Recipe, preprocessing: Preprocessing, *, seed: int, task: str
    ) -> AugmentImage | None:
        """The function that makes the pixels of each epoch's images; None if they are the same in every epoch."""
        ...

    def augment_batch(
        self,
        recipe: Recipe,
        preprocessing: Preprocessing,
        head: Any,
        *,
        seed: int,
        task: str,
        epoch: int,
        batch_size: int,
        group: Group,
        dtype: torch.dtype,
    ) -> AugmentBatch:
        """The function that makes images and targets from the batches of one epoch.

        Its random draws are keyed by (seed, task, epoch).

        Args:
            recipe: The task's recipe.
            preprocessing: How pixels become the model's input.
            head: The head that the targets are for.
            seed: Seed of the draws.
            task: The task's name.
            epoch: Number of the epoch, from 0.
            batch_size: Number of images, over all workers, that go through the model together.
            group: The workers.
            dtype: Type of the images.
        """
        ...

    def example_targets(self, head: Any, count: int) -> Targets:
        """Targets that a batch of ``count`` images might have, on the CPU, for measuring a step."""
        ...

    def metric(self, head: Any, device: torch.device) -> Metric:
        """A new metric for one evaluation of a split."""
        ...

    def doubts(self, details: Mapping[str, Any], class_names: Sequence[str], train_loss: float) -> list[str]:
        """What makes the last evaluation of a split doubtful, a sentence each; empty if nothing does.

        Args:
            details: What its metric kept (`Metric.details`).
            class_names: The classes, empty if the task has none.
            train_loss: The training loss of the last epoch.
        """
        ...


def task_kind(name: str) -> TaskKind:
    """The kind of task with this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    found: TaskKind = look_up(KINDS, name, "kind of task")()
    return found
