"""AdamW, its parameter groups, and the learning rate of each epoch, as in the released HST code."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pipeline.tasks.recipe import Recipe


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, kernels and registers get weight decay; biases and one-dimensional parameters get none."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (plain if parameter.ndim <= 1 or name.endswith(".bias") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with the recipe's learning rate and weight decay, and torch's defaults otherwise."""
    return torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The learning rate of epoch 0, 1, ...: it rises linearly from ``warmup_learning_rate``, then follows a cosine
    down to ``min_learning_rate``.

    The cosine counts from epoch 0, warm-up included, as timm's scheduler does for the released code.
    """
    if epoch < recipe.warmup_epochs:
        share = epoch / recipe.warmup_epochs
        return recipe.warmup_learning_rate + share * (recipe.learning_rate - recipe.warmup_learning_rate)
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
    return recipe.min_learning_rate + cosine * (recipe.learning_rate - recipe.min_learning_rate)
