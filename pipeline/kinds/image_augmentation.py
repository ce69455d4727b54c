"""Augments one training image while it is decoded: a random resized crop, and RandAugment's operations.

These are timm's operations with its draws in its order, but from generators keyed by (seed, task, purpose, epoch,
position). timm's own classes draw from the global generators of ``random`` and numpy. Seeding those around a call would
not work, even under a lock: images are decoded in threads, and storage retries in the same process draw from ``random``
too. The operations themselves draw nothing.

Cost on one core, for a JPEG of 500 x 375 at 224 px: 2.0 ms to decode and resize all of it, 1.5 ms for a random part.
RandAugment (rand-m9-mstd0.5-inc1) adds 1.0 ms, a tenth of it for the generators.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment, rand_augment_transform

from hst.preprocessing import FILTERS, Box, Preprocessing, as_pixels
from hst.randomness import numpy_generator, python_generator
from pipeline.data.batches.streaming import AugmentImage
from pipeline.tasks.recipe import Recipe

CROP_AREA = (0.08, 1.0)
"""Range of the crop's area, as a fraction of the image's."""
CROP_ASPECT = (3 / 4, 4 / 3)
"""Range of its width over its height."""


def image_augmentation(recipe: Recipe, preprocessing: Preprocessing, *, seed: int, task: str) -> AugmentImage | None:
    """A recipe's augmentation of single images; None if it has none, so decoded pixels may be kept."""
    if not recipe.augments_images:
        return None
    return ImageAugmentation(
        preprocessing=preprocessing,
        seed=seed,
        task=task,
        random_resized_crop=recipe.random_resized_crop,
        rand_augment=recipe.rand_augment,
    )


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """An `AugmentImage`: random resized crop, then RandAugment, in timm's order."""

    preprocessing: Preprocessing
    seed: int
    task: str
    random_resized_crop: bool = False
    rand_augment: str | None = None
    """timm's text for it, such as ``rand-m9-mstd0.5-inc1``."""
    _policy: RandAugment | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rand_augment is not None:
            object.__setattr__(self, "_policy", build_policy(self.rand_augment, self.preprocessing))

    def __call__(self, image: bytes, epoch: int, position: int) -> torch.Tensor:
        """See `AugmentImage`."""
        decoded, box = self.preprocessing.decode(image), None
        if self.random_resized_crop:
            box = draw_box(decoded.size, python_generator(self.seed, self.task, "random_resized_crop", epoch, position))
        square = self.preprocessing.square(decoded, box)
        if self._policy is not None:
            square = apply_policy(self._policy, square, self.seed, self.task, epoch, position)
        return as_pixels(square)


def draw_box(size: tuple[int, int], draws: random.Random) -> Box:
    """The part of an image of (width, height) that timm's RandomResizedCropAndInterpolation takes.

    It tries ten times to draw an area and an aspect that fit. Then it takes the largest central part whose aspect is
    allowed.
    """
    width, height = size
    for _ in range(10):
        area = draws.uniform(*CROP_AREA) * (width * height)
        aspect = math.exp(draws.uniform(*map(math.log, CROP_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = draws.randint(0, height - h)
            return draws.randint(0, width - w), top, w, h
    w = min(width, round(height * CROP_ASPECT[1]))
    h = min(height, round(width / CROP_ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def build_policy(text: str, preprocessing: Preprocessing) -> RandAugment:
    """timm's operations for its text. They fill empty pixels with the mean, as in timm's own training."""
    return rand_augment_transform(
        text,
        {
            "translate_const": int(preprocessing.image_size * 0.45),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in preprocessing.mean),
            "interpolation": FILTERS[preprocessing.interpolation],
        },
    )


def apply_policy(
    policy: RandAugment, image: Image.Image, seed: int, task: str, epoch: int, position: int
) -> Image.Image:
    """Does the same as ``policy(image)``, with the draws of one sample."""
    choice = numpy_generator(seed, task, "rand_augment operations", epoch, position)
    chosen = choice.choice(
        len(policy.ops), policy.num_layers, replace=policy.choice_weights is None, p=policy.choice_weights
    )
    draws = python_generator(seed, task, "rand_augment arguments", epoch, position)
    for number in chosen:
        image = _apply(policy.ops[number], image, draws)
    return image


def _apply(operation: AugmentOp, image: Image.Image, draws: random.Random) -> Image.Image:
    if operation.prob < 1 and draws.random() > operation.prob:
        return image
    magnitude, spread = operation.magnitude, operation.magnitude_std
    if spread == math.inf:
        magnitude = draws.uniform(0, magnitude)
    elif spread > 0:
        magnitude = draws.gauss(magnitude, spread)
    level = max(0.0, min(magnitude, operation.magnitude_max or 10.0))
    arguments = _arguments(operation, level, draws)
    if operation.name.startswith("Posterize") and arguments[0] < 1:
        return Image.new("RGB", image.size)  # timm's strongest level keeps no bit, and Pillow 13 refuses it
    return operation.aug_fn(image, *arguments, **operation.kwargs)


# Operations with a random sign, and their largest argument: timm draws the sign inside its level functions.
_EITHER_WAY = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
_AROUND_ONE = ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing")


def _arguments(operation: AugmentOp, level: float, draws: random.Random) -> tuple[float, ...]:
    """An operation's arguments at a level from 0 to 10."""
    if (largest := _EITHER_WAY.get(operation.name)) is not None:
        return (_either_sign(level / 10 * largest, draws),)
    if operation.name in _AROUND_ONE:
        return (max(0.1, 1.0 + _either_sign(level / 10 * 0.9, draws)),)
    return operation.level_fn(level, operation.hparams) if operation.level_fn is not None else ()


def _either_sign(value: float, draws: random.Random) -> float:
    return -value if draws.random() > 0.5 else value
