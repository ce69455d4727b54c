"""What runs ask for, computed: the parts of one run, or those of several tasks in one batch. On a GPU what comes again
step by step is recorded and replayed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from hst.gpu.recorded import Recorder
from hst.layers.gradients import gradients_of
from hst.model import TaskModel
from hst.multitask import forward_tasks
from pipeline.tasks.recipe import Recipe
from pipeline.training.epochs import EvalPart, Part, TrainPart
from pipeline.training.task_run import resolve_precision


class Computer:
    """Answers parts (see `TrainPart` and `EvalPart`) of runs.

    Args:
        device: where their models and images are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorder = Recorder(device)

    def alone(self, part: Part, model: nn.Module) -> torch.Tensor:
        """The answer to a part, by ``model``: the run's own, or what distributes that."""
        if isinstance(part, EvalPart) or model is part.state.run.model:
            return self.together([part])[0]
        recipe = part.state.run.recipe
        with _autocast(recipe, self._device):
            loss = model(part.images, part.targets, part.path_scales, label_smoothing=recipe.label_smoothing)["loss"]
        (loss * part.weight).backward()  # workers add up their gradients in it
        return loss.detach()

    def together(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """The answers to parts of several runs on one backbone, in order: as few passes through the ViT as their models
        allow, and one backward pass. They stand until the next call."""
        models = [part.state.run.model for part in parts]  # each of one run, whose recipe stays what it is

        def work(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
            given = iter(tensors)
            return _computed([_with(part, given) for part in parts], self._device)

        inputs = [tensor for part in parts for tensor in _tensors(part).values()]
        found = self._recorder.run(models, tuple(type(part) for part in parts), work, inputs)
        _add_gradients(parts, found[len(parts) :])
        return [answer for answer in found[: len(parts)] if answer is not None]

    def forget(self, model: TaskModel) -> None:
        """It is not computed any more."""
        self._recorder.forget(model)


def _tensors(part: Part) -> dict[str, torch.Tensor | None]:
    if isinstance(part, EvalPart):
        return {"images": part.images}
    return {"images": part.images, "targets": part.targets, "path_scales": part.path_scales}


def _with(part: Part, given: Iterator[torch.Tensor | None]) -> Part:
    """The part with other tensors."""
    return dataclasses.replace(part, **{name: next(given) for name in _tensors(part)})  # type: ignore[arg-type]


def _computed(parts: Sequence[Part], device: torch.device) -> list[torch.Tensor | None]:
    """The answers, and the gradients of all parameters of the models that are trained."""
    answers: dict[int, torch.Tensor] = {}
    total: list[torch.Tensor] = []
    for places in _alike(parts, device):
        group = [parts[i] for i in places]
        models = [part.state.run.model for part in group]
        recipes = [part.state.run.recipe for part in group]
        images = [part.images for part in group]
        if isinstance(group[0], EvalPart):
            with torch.no_grad(), _autocast(recipes[0], device), _evaluating(models):
                answers.update(zip(places, _logits(models, images, None), strict=True))
            continue
        trained = [part for part in group if isinstance(part, TrainPart)]
        with _autocast(recipes[0], device):
            logits = _logits(models, images, [part.path_scales for part in trained])
            for i, part, recipe, model, own in zip(places, trained, recipes, models, logits, strict=True):
                loss = model.head.losses(own, part.targets, label_smoothing=recipe.label_smoothing)["loss"]
                answers[i] = loss.detach()
                total.append(loss * part.weight)
    found: list[torch.Tensor | None] = [answers[i] for i in range(len(parts))]
    if total:
        found += gradients_of(torch.stack(total).sum(), _trained(parts))
    return found


def _logits(
    models: Sequence[TaskModel], images: Sequence[torch.Tensor], scales: Sequence[torch.Tensor | None] | None
) -> list[torch.Tensor]:
    """Of one model by itself, or of several together."""
    if len(models) > 1:
        return forward_tasks(models, images, scales)
    return [models[0].logits(images[0], None if scales is None else scales[0])]


def _trained(parts: Sequence[Part]) -> list[nn.Parameter]:
    return [p for part in parts if isinstance(part, TrainPart) for p in part.state.run.model.parameters()]


def _add_gradients(parts: Sequence[Part], gradients: Sequence[torch.Tensor | None]) -> None:
    """To what is there already. Where more will be added, what stands until the next time alone does not do."""
    found = iter(gradients)
    for part in parts:
        if isinstance(part, TrainPart):
            several = part.state.run.recipe.accumulation_steps > 1
            for parameter in part.state.run.model.parameters():
                own = next(found)
                if own is None:
                    continue
                if parameter.grad is not None:
                    parameter.grad += own
                else:
                    parameter.grad = own.clone() if several else own


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
