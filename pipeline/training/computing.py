"""Computes the parts that runs ask for: those of one run, or those of several tasks in one batch.

On a GPU, work that repeats at every step is recorded and replayed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hst.gpu.recorded import Recorder
from hst.layers.gradients import gradients_of
from hst.model import TaskModel
from hst.multitask import forward_tasks
from hst.protocols import Outputs, total_loss
from pipeline.training.epochs import Answer, EvalPart, Part, StatisticsPart, TrainPart
from pipeline.training.precision import autocast, resolve_precision

Computed = tuple[list[Answer], list[torch.Tensor | None]]
"""The answers, and the gradients of all parameters of the trained models."""


class Computer:
    """Answers the parts of runs (see `TrainPart` and `EvalPart`).

    Args:
        device: The device that holds the models and images.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorder = Recorder(device)

    def alone(self, part: Part, model: nn.Module) -> Answer:
        """Answers a part with ``model``: the run's own model, or a wrapper that distributes it over workers."""
        if not isinstance(part, TrainPart) or model is part.state.run.model:
            return self.together([part])[0]
        with autocast(part.state.run.recipe, self._device):
            losses = model(part.images, part.targets, part.path_scales)
        (total_loss(losses) * part.weight).backward()  # this also sums the gradients over workers
        return _detached(losses)

    def together(self, parts: Sequence[Part]) -> list[Answer]:
        """Answers parts of several runs on one backbone, in order. The answers are valid until the next call.

        The ViT runs as few times as the models allow, and there is one backward pass. Batches for statistics are the
        exception: they are rare, and computed one by one.
        """
        shared = [part for part in parts if not isinstance(part, StatisticsPart)]
        answers = iter(self._shared(shared) if shared else [])
        return [self._estimated(part) if isinstance(part, StatisticsPart) else next(answers) for part in parts]

    def _estimated(self, part: StatisticsPart) -> Answer:
        with autocast(part.state.run.recipe, self._device):
            part.state.run.model.estimate_statistics(part.images, part.number)
        return {}

    def _shared(self, parts: Sequence[TrainPart | EvalPart]) -> list[Answer]:
        models = [part.state.run.model for part in parts]  # a model belongs to one run, whose recipe never changes
        inputs, structure = tree_flatten([_tensors(part) for part in parts])

        def work(*tensors: torch.Tensor | None) -> Computed:
            given = tree_unflatten(list(tensors), structure)
            own = [dataclasses.replace(part, **fields) for part, fields in zip(parts, given, strict=True)]
            return _computed(own, self._device)

        if all(model.head.depends_on_shapes_alone for model in models):
            kinds = tuple(type(part) for part in parts)
            answers, gradients = self._recorder.run(models, (kinds, str(structure)), work, inputs)
        else:
            answers, gradients = work(*inputs)
        _add_gradients(parts, gradients)
        return answers

    def forget(self, model: TaskModel) -> None:
        """Drops the recordings of a model that will not be computed again."""
        self._recorder.forget(model)


def _tensors(part: TrainPart | EvalPart) -> dict[str, Any]:
    """The fields of a part that hold tensors."""
    if isinstance(part, EvalPart):
        return {"images": part.images}
    return {"images": part.images, "targets": part.targets, "path_scales": part.path_scales}


def _computed(parts: Sequence[TrainPart | EvalPart], device: torch.device) -> Computed:
    answers: dict[int, Answer] = {}
    total: list[torch.Tensor] = []
    for places in _alike(parts, device):
        group = [parts[i] for i in places]
        models = [part.state.run.model for part in group]
        recipe = group[0].state.run.recipe  # all parts of the group have the same precision
        images = [part.images for part in group]
        if isinstance(group[0], EvalPart):
            with torch.no_grad(), autocast(recipe, device), _evaluating(models):
                answers.update(zip(places, _outputs(models, images, None), strict=True))
            continue
        trained = [part for part in group if isinstance(part, TrainPart)]
        with autocast(recipe, device):
            outputs = _outputs(models, images, [part.path_scales for part in trained])
            for i, part, model, own in zip(places, trained, models, outputs, strict=True):
                losses = model.head.losses(own, part.targets)
                answers[i] = _detached(losses)
                total.append(total_loss(losses) * part.weight)
    gradients: list[torch.Tensor | None] = []
    if total:
        gradients = gradients_of(torch.stack(total).sum(), _trained(parts))
    return [answers[i] for i in range(len(parts))], gradients


def _outputs(
    models: Sequence[TaskModel], images: Sequence[torch.Tensor], scales: Sequence[torch.Tensor | None] | None
) -> list[Outputs]:
    """The outputs of one model, or of several models computed together."""
    if len(models) > 1:
        return forward_tasks(models, images, scales)
    return [models[0].outputs(images[0], None if scales is None else scales[0])]


def _detached(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}


def _trained(parts: Sequence[Part]) -> list[nn.Parameter]:
    return [p for part in parts if isinstance(part, TrainPart) for p in part.state.run.model.parameters()]


def _add_gradients(parts: Sequence[Part], gradients: Sequence[torch.Tensor | None]) -> None:
    """Adds the gradients to those of the parameters.

    The next computation overwrites them, so a gradient that will be added to is copied.
    """
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
    """Groups the indices of parts that can be computed together; parts to train come first."""
    found: dict[tuple[bool, str], list[int]] = {}
    for i, part in enumerate(parts):
        key = (isinstance(part, EvalPart), resolve_precision(part.state.run.recipe.precision, device))
        found.setdefault(key, []).append(i)
    return [found[key] for key in sorted(found)]


@contextlib.contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model in models:
            model.train()
