"""Finds everything that is impossible in a recipe, with one sentence for each field."""

from __future__ import annotations

import math
import re
from typing import Any

from hst.config import DECODINGS, HEAD_INPUTS, HSN_PRESETS, INTERPOLATIONS, MEMORY_MODES
from hst.methods import METHODS

PRECISIONS = ("auto", "float32", "bfloat16", "float64")
MIN_IMAGE_SIZE = 32
"""The stride of the side network's last stage, in pixels."""

# What timm reads of such a text; it ignores some other parts silently. Magnitude, layers, probability, spread and bound
# of the magnitude, whether a larger magnitude is always stronger, and which operations.
_RAND_AUGMENT = re.compile(
    r"rand(-(m\d{1,2}|n[1-9]|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax\d{1,2}|inc[01]|t(weights|3aw?)))*"
)


def recipe_faults(recipe: Any) -> list[str]:
    """Every fault of a `pipeline.tasks.recipe.Recipe`, as ``field=value: expected ...``."""
    return [*_pixel_faults(recipe), *_optimizer_faults(recipe), *_augmentation_faults(recipe), *_name_faults(recipe)]


def _pixel_faults(recipe: Any) -> list[str]:
    crop = recipe.eval_crop
    faults = [
        _fault(
            recipe,
            "image_size",
            _is_int(recipe.image_size, MIN_IMAGE_SIZE),
            f"a whole number of pixels, at least {MIN_IMAGE_SIZE}",
        ),
        _fault(
            recipe,
            "eval_crop",
            crop is None or (_is_number(crop) and 0 < crop <= 1),
            "a number above 0, at most 1, or none",
        ),
    ]
    for field in ("mean", "std"):
        if (value := getattr(recipe, field)) is None:
            continue
        numbers = isinstance(value, tuple) and len(value) == 3 and all(map(_is_number, value))
        faults.append(_fault(recipe, field, numbers, "three numbers, as in 0.5,0.5,0.5, or none"))
        if field == "std" and numbers:
            faults.append(_fault(recipe, field, min(value) > 0, "three numbers above 0"))
    ground = recipe.background
    is_colour = isinstance(ground, tuple) and len(ground) == 3 and all(_is_int(v, 0) and v <= 255 for v in ground)
    faults.append(_fault(recipe, "background", is_colour, "three whole numbers from 0 to 255, as in 255,255,255"))
    return [fault for fault in faults if fault]


def _optimizer_faults(recipe: Any) -> list[str]:
    rate, clip_norm, parts = recipe.learning_rate, recipe.clip_norm, recipe.accumulation_steps
    is_rate = _is_number(rate) and rate > 0
    decay = recipe.weight_decay
    faults = [
        _fault(recipe, "epochs", _is_int(recipe.epochs, 1), "a whole number, at least 1"),
        _fault(
            recipe,
            "batch_size",
            _is_int(recipe.batch_size, 2),
            "a whole number, at least 2 (BatchNorm needs two images)",
        ),
        _fault(recipe, "learning_rate", is_rate, "a number above 0"),
        _fault(recipe, "weight_decay", _is_number(decay) and decay >= 0, "a number, 0 or above"),
        _fault(recipe, "drop_path", _is_share_below_1(recipe.drop_path), "a number from 0 to below 1"),
    ]
    for field in ("warmup_learning_rate", "min_learning_rate"):
        value = getattr(recipe, field)
        possible = _is_number(value) and value >= 0
        faults.append(_fault(recipe, field, possible, "a number, 0 or above"))
        if possible and is_rate:
            faults.append(_fault(recipe, field, value <= rate, f"at most learning_rate ({rate!r})"))
    clips = clip_norm is None or (_is_number(clip_norm) and clip_norm > 0)
    faults.append(_fault(recipe, "clip_norm", clips, "a number above 0, or none"))
    faults.append(_fault(recipe, "accumulation_steps", _is_int(parts, 1), "a whole number, at least 1"))
    if _is_int(parts, 1) and _is_int(recipe.batch_size, 2):
        at_most = f"at most batch_size ({recipe.batch_size})"
        faults.append(_fault(recipe, "accumulation_steps", parts <= recipe.batch_size, at_most))
    return [fault for fault in faults if fault]


def _augmentation_faults(recipe: Any) -> list[str]:
    smoothing, policy = recipe.label_smoothing, recipe.rand_augment
    is_policy = policy is None or (isinstance(policy, str) and _RAND_AUGMENT.fullmatch(policy) is not None)
    faults = [
        _fault(recipe, "label_smoothing", _is_share_below_1(smoothing), "a number from 0 to below 1"),
        _fault(recipe, "rand_augment", is_policy, "timm's text, as in rand-m9-mstd0.5-inc1, or none"),
        _fault(recipe, "random_resized_crop", isinstance(recipe.random_resized_crop, bool), "true or false"),
    ]
    for field in ("mixup", "cutmix"):
        value = getattr(recipe, field)
        faults.append(_fault(recipe, field, _is_number(value) and value >= 0, "a number, 0 (off) or above"))
    for field in ("random_erasing", "horizontal_flip"):
        value = getattr(recipe, field)
        faults.append(_fault(recipe, field, _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"))
    return [fault for fault in faults if fault]


def _name_faults(recipe: Any) -> list[str]:
    possible = {
        "precision": PRECISIONS,
        "memory": ("auto", *MEMORY_MODES),
        "method": tuple(METHODS),
        "head_input": HEAD_INPUTS,
        "hsn": tuple(HSN_PRESETS),
        "interpolation": (None, *INTERPOLATIONS),
        "decoding": DECODINGS,
        "batch_statistics": ("estimated", "running"),
    }
    faults = [
        _fault(recipe, field, getattr(recipe, field) in names, f"one of {', '.join(map(str, names))}")
        for field, names in possible.items()
    ]
    return [fault for fault in faults if fault]


def _fault(recipe: Any, field: str, is_possible: bool, expected: str) -> str:
    """A sentence about an impossible value, or nothing if the field's value is possible."""
    return "" if is_possible else f"{field}={getattr(recipe, field)!r}: expected {expected}"


def _is_share_below_1(value: object) -> bool:
    return _is_number(value) and 0 <= value < 1  # type: ignore[operator]


def _is_int(value: object, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
