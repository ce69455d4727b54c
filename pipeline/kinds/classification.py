"""Classification: one label per image, cross-entropy, top-1 accuracy and a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hst.heads.classification import ClassificationHead
from hst.preprocessing import Preprocessing
from pipeline.data.batches.streaming import AugmentImage
from pipeline.evaluation.classification import TopOne
from pipeline.evaluation.metric import Group
from pipeline.kinds.batch_augmentation import BatchAugmentation
from pipeline.kinds.image_augmentation import image_augmentation
from pipeline.tasks.recipe import Recipe

NEAR_0 = 0.1
"""A training loss below this share of the loss of guessing, ln(classes), says that the training images are known."""


class Classification:
    """The `pipeline.kinds.kind.TaskKind` of classification."""

    pictures = "pipeline.reports.pictures:confusion_pictures"

    def head_spec(self, recipe: Recipe, class_names: Sequence[str]) -> dict[str, Any]:
        """A classification head with one logit per class."""
        return {"kind": "classification", "input": recipe.head_input, "num_classes": len(class_names)}

    def prepare_head(self, head: ClassificationHead, recipe: Recipe) -> None:
        """Sets the head's label smoothing."""
        head.label_smoothing = recipe.label_smoothing

    def augment_image(
        self, recipe: Recipe, preprocessing: Preprocessing, *, seed: int, task: str
    ) -> AugmentImage | None:
        """Random resized crop and RandAugment, if the recipe has them."""
        return image_augmentation(recipe, preprocessing, seed=seed, task=task)

    def augment_batch(
        self,
        recipe: Recipe,
        preprocessing: Preprocessing,
        head: ClassificationHead,
        *,
        seed: int,
        task: str,
        epoch: int,
        batch_size: int,
        group: Group,
        dtype: torch.dtype,
    ) -> BatchAugmentation:
        """Mirroring, mixup, cutmix and random erasing, if the recipe has them."""
        return BatchAugmentation(
            recipe=recipe,
            preprocessing=preprocessing,
            num_classes=head.num_classes,
            seed=seed,
            task=task,
            epoch=epoch,
            batch_size=batch_size,
            workers=group,
            dtype=dtype,
        )

    def example_targets(self, head: ClassificationHead, count: int) -> torch.Tensor:
        """Labels (count,) that take every class in turn."""
        return torch.arange(count) % head.num_classes

    def metric(self, head: ClassificationHead, device: torch.device) -> TopOne:
        """Top-1 accuracy."""
        return TopOne(head.num_classes, device)

    def doubts(self, details: Mapping[str, Any], class_names: Sequence[str], train_loss: float) -> list[str]:
        """One class for everything, or a result at chance though the training images are known by heart."""
        counts = np.array(details["confusion"])
        total, right, largest = counts.sum(), np.trace(counts), counts.sum(axis=1).max()
        if largest == total:  # of a split with one class nothing else can be told
            return []
        if (predicted := np.flatnonzero(counts.sum(axis=0))).size == 1:
            return [f"{class_names[predicted[0]]!r} is predicted for all {total:,} images"]
        chance = largest / total
        error = math.sqrt(chance * (1 - chance) / total)
        if train_loss < NEAR_0 * math.log(len(class_names)) and right / total <= chance + error:
            return [
                f"{right / total:.1%} of {total:,} images are right, no more than by chance (the largest class has "
                f"{chance:.1%}), though the training loss is {train_loss:.3g}"
            ]
        return []
