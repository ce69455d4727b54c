"""What a task predicts: a kind joins an annotation, a head, its augmentation, a metric and pictures.

A new kind is a file of its own, a line in `pipeline.kinds.KINDS`, and its measure in `pipeline.tasks.kinds`;
docs/extending.md shows one.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Makes of a worker's part of a batch what the model is trained on."""

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Targets]:
        """uint8 images and labels -> normalised images (b, 3, S, S) and targets, both on the worker's device.

        Every worker calls it for every batch, in order.
        """
        ...


class TaskKind(Protocol):
    """One kind of task. It has no state: what a run needs is handed to it.

    A ``head`` is always the one that its `head_spec` describes.
    """

    pictures: str
    """``module:function`` that draws an evaluation's `Metric.details`:
    ``(details, class_names, folder, title=...) -> the PNG files that it wrote there``."""

    def head_spec(self, recipe: Recipe, class_names: Sequence[str]) -> dict[str, Any]:
        """The head of a task: ``{"kind": a key of hst.heads.HEADS, ...}``."""
        ...

    def prepare_head(self, head: Any, recipe: Recipe) -> None:
        """Sets what a recipe says of the head's losses, which is no part of the head's `spec`."""
        ...

    def augment_image(
        self, recipe: Recipe, preprocessing: Preprocessing, *, seed: int, task: str
    ) -> AugmentImage | None:
        """What makes the pixels of each epoch's images; None where they are the same in every epoch."""
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
        """What makes images and targets of the batches of one epoch, with draws keyed by (seed, task, epoch).

        Args:
            recipe: the task's.
            preprocessing: how pixels become the model's input.
            head: what the targets are for.
            seed: of the draws.
            task: the task's name.
            epoch: from 0.
            batch_size: images of all workers that pass the model together.
            group: the workers.
            dtype: type of the images.
        """
        ...

    def example_targets(self, head: Any, count: int) -> Targets:
        """Targets such as a batch of so many images might have, on the CPU, to measure a step with."""
        ...

    def metric(self, head: Any, device: torch.device) -> Metric:
        """A new metric for one evaluation of a split."""
        ...


def task_kind(name: str) -> TaskKind:
    """The kind of task with this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    found: TaskKind = look_up(KINDS, name, "kind of task")()
    return found
