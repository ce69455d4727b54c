"""A recipe: every number that training a task needs beside the task's data, and `--set field=value` on top of it.

The defaults are those of the released code of HST (arXiv 2310.05393): AdamW, batch 64, 100 epochs, cosine per epoch,
mean = std = 0.5, direct bicubic resize, no augmentation. Knows no torch: it is imported to print `--help`.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hst.config import HEAD_INPUTS, HSN_PRESETS, MEMORY_MODES, HSNConfig
from hst.methods import METHODS
from pipeline.tasks.near_names import near_names

PRECISIONS = ("auto", "float32", "bfloat16", "float64")
MIN_IMAGE_SIZE = 32
"""The stride of the side network's last stage."""

# What timm reads of such a text; it ignores some of the rest in silence. Magnitude, layers, probability, spread and
# bound of the magnitude, whether a larger one is always stronger, and which operations.
_RAND_AUGMENT = re.compile(
    r"rand(-(m\d{1,2}|n[1-9]|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax\d{1,2}|inc[01]|t(weights|3aw?)))*"
)


class RecipeError(ValueError):
    """One or more fields of a recipe are impossible; `faults` has one sentence for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = list(faults)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one task is trained; recorded with every run and in every checkpoint's provenance."""

    image_size: int = 224
    """Side of the square that images are resized to, in pixels."""
    epochs: int = 100
    """Passes over the training split."""
    batch_size: int = 64
    """Images a step over all workers together (global); a smaller split uses its own size."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    weight_decay: float = 5e-4
    """Of AdamW; never applied to biases and one-dimensional parameters."""
    drop_path: float = 0.0
    """Largest stochastic-depth rate, in [0, 1), in the frozen ViT's blocks and in the side blocks."""
    warmup_learning_rate: float = 1e-7
    """Where the warm-up begins."""
    min_learning_rate: float = 1e-8
    """Where the cosine ends."""
    label_smoothing: float = 0.0
    """In [0, 1)."""
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
    eval_crop: float | None = None
    """In (0, 1]: side of the central square, of the shorter side, that is seen where nothing is cut at random; none
    squeezes the whole image into the square."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; none leaves it as it is."""
    accumulation_steps: int = 1
    """Parts that a batch is split into, to train with less memory."""
    precision: str = "auto"
    """auto (float32 on CPU, bfloat16 on CUDA), float32, bfloat16 or float64."""
    memory: str = "auto"
    """What a train step keeps and what it runs again: speed, balanced or memory (`hst.config.MEMORY_MODES`); auto: the
    first of them that fits. Gradients are the same but for rounding."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, of pixels in [0, 1]."""
    method: str = "hst"
    """How the task is tuned: a name of `hst.methods.METHODS`."""
    head_input: str = "side"
    """What the head sees: side (the paper) or side+cls (the ViT's final class token beside it)."""
    hsn: str = "HSN_B"
    """Preset of the side network; its single fields can be set beside it."""

    def __post_init__(self) -> None:
        """Raises RecipeError with every impossible field, not only the first."""
        faults = _recipe_faults(self)
        if faults:
            raise RecipeError(faults)

    @property
    def warmup_epochs(self) -> int:
        """10 % of the epochs, rounded down; none for fewer than 10 epochs (which rounding down gives)."""
        return self.epochs // 10

    @property
    def epochs_between_validations(self) -> int:
        """A selection run looks at val about ten times, the last epoch among them."""
        return max(1, self.epochs // 10)

    def is_validated(self, epoch: int) -> bool:
        """Whether a selection run looks at val after so many of its epochs."""
        return epoch == self.epochs or epoch % self.epochs_between_validations == 0

    @property
    def augments_images(self) -> bool:
        """Whether an image has other pixels in every epoch, so that decoded ones cannot be kept."""
        return self.random_resized_crop or self.rand_augment is not None


def step_fault(recipe: Recipe, num_samples: int, num_workers: int) -> str | None:
    """Why no training step can be made of so many samples by so many workers, or None where it can."""
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


def _recipe_faults(recipe: Recipe) -> list[str]:
    faults: list[str] = []

    def check(field: str, possible: bool, expected: str) -> None:
        if not possible:
            faults.append(f"{field}={getattr(recipe, field)!r}: expected {expected}")

    check(
        "image_size", _is_int(recipe.image_size, MIN_IMAGE_SIZE), f"a whole number of pixels, at least {MIN_IMAGE_SIZE}"
    )
    check("epochs", _is_int(recipe.epochs, 1), "a whole number, at least 1")
    check("batch_size", _is_int(recipe.batch_size, 2), "a whole number, at least 2 (BatchNorm needs two images)")
    check("learning_rate", _is_number(recipe.learning_rate) and recipe.learning_rate > 0, "a number above 0")
    check("weight_decay", _is_number(recipe.weight_decay) and recipe.weight_decay >= 0, "a number, 0 or above")
    for field in ("drop_path", "label_smoothing"):
        value = getattr(recipe, field)
        check(field, _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
    for field in ("warmup_learning_rate", "min_learning_rate"):
        value = getattr(recipe, field)
        possible = _is_number(value) and value >= 0
        check(field, possible, "a number, 0 or above")
        if possible and _is_number(recipe.learning_rate) and recipe.learning_rate > 0:
            check(field, value <= recipe.learning_rate, f"at most learning_rate ({recipe.learning_rate!r})")
    for field in ("mixup", "cutmix"):
        value = getattr(recipe, field)
        check(field, _is_number(value) and value >= 0, "a number, 0 (off) or above")
    for field in ("random_erasing", "horizontal_flip"):
        value = getattr(recipe, field)
        check(field, _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
    policy = recipe.rand_augment
    possible = policy is None or (isinstance(policy, str) and _RAND_AUGMENT.fullmatch(policy) is not None)
    check("rand_augment", possible, "timm's text, as in rand-m9-mstd0.5-inc1, or none")
    check("random_resized_crop", isinstance(recipe.random_resized_crop, bool), "true or false")
    crop = recipe.eval_crop
    check("eval_crop", crop is None or (_is_number(crop) and 0 < crop <= 1), "a number above 0, at most 1, or none")
    clip_norm = recipe.clip_norm
    check(
        "clip_norm",
        clip_norm is None or (_is_number(clip_norm) and clip_norm > 0),
        "a number above 0, or none",
    )
    check("accumulation_steps", _is_int(recipe.accumulation_steps, 1), "a whole number, at least 1")
    if _is_int(recipe.accumulation_steps, 1) and _is_int(recipe.batch_size, 2):
        at_most = recipe.accumulation_steps <= recipe.batch_size
        check("accumulation_steps", at_most, f"at most batch_size ({recipe.batch_size})")
    for field in ("mean", "std"):
        value = getattr(recipe, field)
        numbers = isinstance(value, tuple) and len(value) == 3 and all(map(_is_number, value))
        check(field, numbers, "three numbers, as in 0.5,0.5,0.5")
        if field == "std" and numbers:
            check(field, min(value) > 0, "three numbers above 0")
    for field, names in (
        ("precision", PRECISIONS),
        ("memory", ("auto", *MEMORY_MODES)),
        ("method", tuple(METHODS)),
        ("head_input", HEAD_INPUTS),
        ("hsn", tuple(HSN_PRESETS)),
    ):
        check(field, getattr(recipe, field) in names, f"one of {', '.join(names)}")
    return faults


def _is_int(value: object, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def apply_settings(
    recipe: Recipe, settings: Sequence[str], hsn_fields: Mapping[str, Any] | None = None
) -> tuple[Recipe, HSNConfig, list[str]]:
    """Applies `field=value` texts to a recipe and to the side network's preset.

    Args:
        recipe: What the task's catalogue entry says.
        settings: Each names a field of Recipe or of HSNConfig once. Tuples are written 32,48,64,72; also none, true,
            false.
        hsn_fields: What the task itself changes in its recipe's preset; the settings go on top.

    Returns:
        The recipe and the side network with the settings applied, and every fault found. Where there are faults the
        first two are without the settings and not to be used.
    """
    faults: list[str] = []
    for_recipe: dict[str, Any] = {}
    for_hsn: dict[str, Any] = {}
    recipe_types = typing.get_type_hints(Recipe)
    hsn_types = {field.name: typing.get_type_hints(HSNConfig)[field.name] for field in dataclasses.fields(HSNConfig)}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not name:
            faults.append(f"--set {setting!r}: expected field=value, as in epochs=40")
            continue
        if name in for_recipe or name in for_hsn:
            faults.append(f"--set {setting!r}: {name} is set twice; keep one")
            continue
        if name not in recipe_types and name not in hsn_types:
            faults.append(_unknown_field(setting, name, [*recipe_types, *hsn_types]))
            continue
        values, kind = (for_recipe, recipe_types[name]) if name in recipe_types else (for_hsn, hsn_types[name])
        try:
            values[name] = _parse(text, kind)
        except ValueError:
            faults.append(f"--set {setting!r}: expected {describe_kind(kind)} for {name}; one --set a field")
    try:
        changed = dataclasses.replace(recipe, **for_recipe)
    except RecipeError as error:
        faults += [f"--set: {fault}" for fault in error.faults]
        changed = recipe
    hsn = HSN_PRESETS[changed.hsn]
    try:
        hsn = dataclasses.replace(hsn, **{**(hsn_fields or {}), **for_hsn})
    except ValueError as error:
        faults.append(f"--set {_as_settings(for_hsn or {'hsn': changed.hsn})}: {error}")
    return changed, hsn, faults


def _unknown_field(setting: str, name: str, names: list[str]) -> str:
    hint = near_names(name, names) or f"the fields are {', '.join(names)}"
    return f"--set {setting!r}: no recipe or HSN field is called {name!r}; {hint}"


def _as_settings(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _parse(text: str, kind: Any) -> Any:
    """Reads a text as the annotated type of a field; ValueError where it is not one."""
    options = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none" and types.NoneType in options:
            return None
        return _parse(text, next(option for option in options if option is not types.NoneType))
    if origin is tuple:
        return tuple(_parse(part.strip(), options[0]) for part in text.strip("()[] ").rstrip(",").split(","))
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    if kind in (int, float, str):
        return kind(text)
    raise TypeError(f"a field of type {kind!r} cannot be set from text")


def _refuse(text: str) -> typing.NoReturn:
    raise ValueError(text)


def describe_kind(kind: Any, *, several: str = "{}, several separated by commas", none: str = "none") -> str:
    """A field's annotated type for people; `several` and `none` are how the place it is written in has them."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(describe_kind(option, several=several, none=none) for option in options)
    if typing.get_origin(kind) is tuple:
        return several.format(describe_kind(options[0]))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: none}
    return names[kind]
