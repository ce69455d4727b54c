"""What runs ask for, computed: each part by its own model, or those of several tasks in one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from hst.multitask import forward_tasks
from pipeline.tasks.recipe import Recipe
from pipeline.training.epochs import EvalPart, Part, TrainPart
from pipeline.training.task_run import resolve_precision


def compute(part: Part, model: nn.Module, device: torch.device) -> torch.Tensor:
    """The answer to a part (see `TrainPart` and `EvalPart`), by ``model``: the run's own, or what distributes that."""
    recipe = part.state.run.recipe
    with _autocast(recipe, device):
        if isinstance(part, EvalPart):
            return part.state.run.model.predict(part.images)
        loss = model(part.images, part.targets, part.path_scales, label_smoothing=recipe.label_smoothing)["loss"]
    (loss * part.weight).backward()
    return loss.detach()


def compute_together(parts: Sequence[Part], device: torch.device) -> list[torch.Tensor]:
    """The answers to parts of several runs on one backbone, in order: as few passes through the ViT as their models
    allow, and one backward pass."""
    if len(parts) == 1:
        return [compute(part, part.state.run.model, device) for part in parts]
    answers: dict[int, torch.Tensor] = {}
    total: list[torch.Tensor] = []
    for places in _alike(parts, device):
        group = [parts[i] for i in places]
        models = [part.state.run.model for part in group]
        recipes = [part.state.run.recipe for part in group]
        images = [part.images for part in group]
        if isinstance(group[0], EvalPart):
            with torch.no_grad(), _autocast(recipes[0], device), _evaluating(models):
                answers.update(zip(places, forward_tasks(models, images), strict=True))
            continue
        trained = [part for part in group if isinstance(part, TrainPart)]
        with _autocast(recipes[0], device):
            logits = forward_tasks(models, images, [part.path_scales for part in trained])
            for i, part, recipe, model, own in zip(places, trained, recipes, models, logits, strict=True):
                loss = model.head.losses(own, part.targets, label_smoothing=recipe.label_smoothing)["loss"]
                answers[i] = loss.detach()
                total.append(loss * part.weight)
    if total:
        torch.stack(total).sum().backward()
    return [answers[i] for i in range(len(parts))]


def _alike(parts: Sequence[Part], device: torch.device) -> list[list[int]]:
    """Places of the parts that go together, those to be trained first."""
    found: dict[tuple[bool, str], list[int]] = {}
    for i, part in enumerate(parts):
        key = (isinstance(part, EvalPart), resolve_precision(part.state.run.recipe.precision, device))
        found.setdefault(key, []).append(i)
    return [found[key] for key in sorted(found)]


@contextlib.contextmanager
def _autocast(recipe: Recipe, device: torch.device) -> Iterator[None]:
    enabled = resolve_precision(recipe.precision, device) == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        yield


@contextlib.contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model in models:
            model.train()
