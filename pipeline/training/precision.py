"""What a recipe's precision means: the types of parameters and images, and of the products between them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from pipeline.tasks.recipe import Recipe


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    return ("bfloat16" if device.type == "cuda" else "float32") if precision == "auto" else precision


def model_dtype(recipe: Recipe) -> torch.dtype:
    """The type of parameters, the frozen ViT and images: float64 if the recipe says so, else float32."""
    return torch.float64 if recipe.precision == "float64" else torch.float32


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Computes products in bfloat16 if the recipe says so."""
    enabled = resolve_precision(recipe.precision, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
