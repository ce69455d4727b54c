"""A recipe: every number that training a task needs beside the task's data.

The defaults are those of the released code of HST (arXiv 2310.05393): AdamW, batch 64, 100 epochs, cosine per epoch,
direct resize, no augmentation; mean, std and filter are the backbone's. Knows no torch: it is imported to print
`--help`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tasks.recipe_faults import recipe_faults


class RecipeError(ValueError):
    """One or more fields of a recipe are impossible; `faults` has one sentence for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = list(faults)


FIELD_GROUPS: dict[str, tuple[str, ...]] = {
    "pixels": ("image_size", "mean", "std", "interpolation", "eval_crop", "decoding", "background"),
    "model": ("method", "hsn", "head_input", "drop_path", "batch_statistics"),
    "optimizer": (
        "epochs",
        "batch_size",
        "accumulation_steps",
        "learning_rate",
        "warmup_learning_rate",
        "min_learning_rate",
        "weight_decay",
        "clip_norm",
    ),
    "augmentation": (
        "label_smoothing",
        "mixup",
        "cutmix",
        "random_erasing",
        "rand_augment",
        "random_resized_crop",
        "horizontal_flip",
    ),
    "computing": ("precision", "memory"),
}
"""The fields of a recipe by what they are about, in the order in which people see them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one task is trained; recorded with every run and in every checkpoint's provenance."""

    # How an image becomes the model's input.
    image_size: int = 224
    """Side of the square that images are resized to, in pixels."""
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels in [0, 1]; none: as in the backbone's pretraining."""
    std: tuple[float, ...] | None = None
    """Per channel, of pixels in [0, 1]; none: as in the backbone's pretraining."""
    interpolation: str | None = None
    """Filter of the resize, nearest, bilinear or bicubic; none: as in the backbone's pretraining."""
    eval_crop: float | None = None
    """Side of the central square that is seen where nothing is cut at random, as a fraction of the image's shorter
    side, in (0, 1]. none squeezes the whole image into the square."""
    decoding: str = "shown"
    """How an image file becomes RGB: shown (turned by its orientation tag, in sRGB, on the background where it is
    transparent) or stored (tags are ignored, as published benchmarks were read)."""
    background: tuple[int, ...] = (255, 255, 255)
    """RGB colour under transparent pixels."""

    # What is trained.
    method: str = "hst"
    """How the task is tuned: a name of `hst.methods.METHODS`."""
    hsn: str = "HSN_B"
    """Preset of the side network; its single fields can be set beside it."""
    head_input: str = "side"
    """What the head sees: side (the paper) or side+cls (the ViT's final class token beside it)."""
    drop_path: float = 0.0
    """Largest stochastic-depth rate, in [0, 1), in the frozen ViT's blocks and in the side blocks."""
    batch_statistics: str = "estimated"
    """What the batch norms normalise by in an evaluation: estimated (from training images, for the weights that are
    evaluated) or running (the average over the last steps, as in the released code)."""

    # How it is trained.
    epochs: int = 100
    """Passes over the training split."""
    batch_size: int = 64
    """Images a step over all workers together (global); a smaller split uses its own size."""
    accumulation_steps: int = 1
    """Parts that a batch is split into, to train with less memory."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    warmup_learning_rate: float = 1e-7
    """Where the warm-up begins."""
    min_learning_rate: float = 1e-8
    """Where the cosine ends."""
    weight_decay: float = 5e-4
    """Weight decay of AdamW; never applied to biases and one-dimensional parameters."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; none leaves it as it is."""

    # What is drawn anew in every epoch.
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes, in [0, 1)."""
    mixup: float = 0.0
    """alpha of the Beta distribution that mixes images i and B - 1 - i of a batch (arXiv 1710.09412); 0 is off."""
    cutmix: float = 0.0
    """alpha of the rectangle that is pasted instead (arXiv 1905.04899); 0 is off. With both, each takes half the
    batches."""
    random_erasing: float = 0.0
    """Share of images in which a rectangle of a fiftieth to a third becomes noise (arXiv 1708.04896)."""
    rand_augment: str | None = None
    """timm's text for RandAugment (arXiv 1909.13719), as in rand-m9-mstd0.5-inc1, or none."""
    random_resized_crop: bool = False
    """Train on a random part of each image: 8 to 100 % of its area, 3:4 to 4:3 in shape."""
    horizontal_flip: float = 0.0
    """Share of training images that are mirrored."""

    # How it is computed.
    precision: str = "auto"
    """auto (float32 on CPU, bfloat16 on CUDA), float32, bfloat16 or float64."""
    memory: str = "auto"
    """What a train step keeps and what it runs again: speed, balanced or memory (`hst.config.MEMORY_MODES`); auto: the
    first of them that fits. Gradients are the same except for rounding."""

    def __post_init__(self) -> None:
        """Raises RecipeError with every impossible field, not only the first."""
        faults = recipe_faults(self)
        if faults:
            raise RecipeError(faults)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of ``dataclasses.asdict`` after a journey through JSON."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    @property
    def warmup_epochs(self) -> int:
        """10 % of the epochs, rounded down; none for fewer than 10 epochs (which rounding down gives)."""
        return self.epochs // 10

    @property
    def epochs_between_validations(self) -> int:
        """A selection run looks at val about ten times, the last epoch among them."""
        return max(1, self.epochs // 10)

    def is_validated(self, epoch: int) -> bool:
        """Whether a selection run looks at val after this epoch, counted from 1."""
        return epoch == self.epochs or epoch % self.epochs_between_validations == 0

    @property
    def augments_images(self) -> bool:
        """Whether an image has other pixels in every epoch, so that decoded ones cannot be kept."""
        return self.random_resized_crop or self.rand_augment is not None


def step_fault(recipe: Recipe, num_samples: int, num_workers: int) -> str | None:
    """Why this number of workers cannot make a training step from this number of samples; None if they can."""
    batch_size, parts = min(recipe.batch_size, num_samples), recipe.accumulation_steps
    if batch_size < 2:
        return f"{num_samples} training images; a step needs at least 2"
    if batch_size % parts:
        return f"accumulation_steps={parts} does not divide the batch of {batch_size}"
    if batch_size // parts < max(2, num_workers):
        return (
            f"a batch of {batch_size} in {parts} parts over {num_workers} workers leaves one without an image, or with "
            f"one to normalise by; use fewer workers, fewer parts or a larger batch_size"
        )
    return None
