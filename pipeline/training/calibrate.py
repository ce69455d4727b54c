"""Measures the time and memory that a train worker would need for a task's model, with a few steps on random pixels.

This is plain torch, like the loop. The steps are those of the loop, without data, drop-path and other workers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils._pytree import tree_map

from hst.backbone import Backbone
from hst.config import MEMORY_MODES
from hst.model import TaskModel, build_task_model
from hst.multitask import forward_tasks
from hst.protocols import Outputs, total_loss
from pipeline.kinds.kind import TaskKind, task_kind
from pipeline.tasks.recipe import Recipe
from pipeline.training.memory import saved_bytes
from pipeline.training.optimizer import build_optimizer
from pipeline.training.precision import autocast, model_dtype
from pipeline.training.unit import preprocessing_of

CLASS_NAMES = [str(number) for number in range(10)]
"""The classes of every measured model: their number hardly changes the cost of a step."""
_SMALLEST_BATCH = 2
"""BatchNorm needs at least two images."""

Measured = dict[str, Any]


def measure(
    arrays: Mapping[str, np.ndarray],
    backbone: Mapping[str, str],
    models: Sequence[Mapping[str, Any]],
    *,
    threads: int,
    seconds: float,
) -> list[Measured]:
    """Measures task models on one backbone, one after the other, on this process's device.

    Args:
        arrays: The weights, from `Backbone.arrays`.
        backbone: The backbone's ``name`` and ``identity``.
        models: Each has ``kind``, ``method`` and ``recipe`` as plain values, and ``batch_size``, the number of images
            in a worker's step.
        threads: Number of torch threads on the CPU.
        seconds: Time limit for all models together. Each model is measured on at least one step of two images, however
            long that takes.

    Returns:
        One dict a model, with these keys:

        - `train_seconds`, `eval_seconds`: seconds an image. On CUDA the steps are not recorded as graphs, so real
          training is faster.
        - `image_bytes`: bytes that an image of a train step keeps until the backward pass; on CUDA, all bytes that it
          takes.
        - `base_bytes`: bytes of the process (on CUDA, of the device) without any images.
        - `device_bytes`: total memory of a CUDA device, else 0.
        - `kept`: for each mode in `hst.config.MEMORY_MODES`, the memory it keeps as a fraction of the first mode's.
        - `stacked`: the memory an image keeps when tasks' side networks are stacked, as a fraction of what it keeps
          alone.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for i, model in enumerate(models):
        recipe = Recipe.from_dict(model["recipe"])
        frozen = Backbone.from_arrays(backbone["name"], arrays, backbone["identity"])
        frozen.to(device, model_dtype(recipe))
        kind = task_kind(model["kind"])
        task_model = build_task_model(frozen, model["method"], kind.head_spec(recipe, CLASS_NAMES))
        steps = _Steps(task_model.to(device, model_dtype(recipe)), kind, recipe, device)
        started = time.monotonic()
        found.append(_measured(steps, model["batch_size"], started + max(0.0, seconds) / (len(models) - i)))
        seconds -= time.monotonic() - started
    return found


class _Steps:
    """Train steps and evaluations of one model on random pixels."""

    def __init__(self, model: TaskModel, kind: TaskKind, recipe: Recipe, device: torch.device) -> None:
        self.model, self.device = model, device
        self._kind, self._recipe = kind, recipe
        self._preprocessing = preprocessing_of(recipe, model.backbone.name)
        self._optimizer = build_optimizer(model, recipe)
        self._draws = torch.Generator().manual_seed(0)

    def train(self, count: int) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self.loss(count).backward()
        self._optimizer.step()

    def loss(self, count: int) -> torch.Tensor:
        images = self._images(count)
        targets = tree_map(lambda x: x.to(self.device), self._kind.example_targets(self.model.head, count))
        self.model.train()
        with autocast(self._recipe, self.device):
            return total_loss(self.model(images, targets))

    def saved_bytes(self, count: int) -> int:
        vit = self.model.backbone.vit
        own = [*self.model.parameters(), *self.model.buffers(), *vit.parameters(), *vit.buffers()]
        return saved_bytes(lambda: self.loss(count), own=own)

    def stacked_part(self, count: int) -> float:
        """The memory an image keeps when two tasks' side networks are stacked (`hst.side.stacked`), as a fraction of
        what it keeps alone."""
        vit = self.model.backbone.vit
        pair = [self.model, copy.deepcopy(self.model)]
        own = [t for module in (*pair, vit) for t in (*module.parameters(), *module.buffers())]
        images = [self._images(count) for _ in pair]

        def together() -> list[Outputs]:
            with autocast(self._recipe, self.device):
                return forward_tasks(pair, images, stacked=True)

        return saved_bytes(together, own=own) / 2 / self.saved_bytes(count)

    def evaluate(self, count: int) -> None:
        images = self._images(count)
        with autocast(self._recipe, self.device):
            self.model.predict(images)

    def timed(self, step: Callable[[int], None], count: int) -> float:
        """Seconds that ``step(count)`` takes."""
        self._wait()
        started = time.monotonic()
        step(count)
        self._wait()
        return time.monotonic() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _images(self, count: int) -> torch.Tensor:
        shape = (count, 3, self._recipe.image_size, self._recipe.image_size)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=self._draws)
        return self._preprocessing.normalize(pixels.to(self.device), model_dtype(self._recipe))


def _measured(steps: _Steps, batch_size: int, deadline: float) -> Measured:
    """Measures ever larger batches, up to a worker's, while time is left: larger batches are closer to training."""
    cuda = steps.device.type == "cuda"
    count = _SMALLEST_BATCH
    steps.train(count)  # creates the optimiser's state and the copies of weights in another type
    if cuda:
        base, room = torch.cuda.memory_allocated(steps.device), torch.cuda.mem_get_info(steps.device)[1]
    else:
        base, room = psutil.Process().memory_info().rss, 0
    image_bytes = 0 if cuda else steps.saved_bytes(count) // count
    while True:
        if cuda:
            torch.cuda.reset_peak_memory_stats(steps.device)
        spent = steps.timed(steps.train, count)  # the first step of a size also pays costs that come only once
        if time.monotonic() + 3 * spent < deadline:
            spent = min(spent, steps.timed(steps.train, count))
        if cuda:
            image_bytes = (torch.cuda.max_memory_allocated(steps.device) - base) // count
        larger = max(count, min(2 * count, batch_size))
        if larger == count or time.monotonic() + 6 * spent > deadline:  # two larger steps and their evaluations
            break
        count = larger
    evaluation = steps.timed(steps.evaluate, count)
    if time.monotonic() + evaluation < deadline:
        evaluation = min(evaluation, steps.timed(steps.evaluate, count))
    stacked = (
        steps.stacked_part(_SMALLEST_BATCH) if cuda and steps.model.extractor.packable else 1.0
    )  # on a CPU side networks are not stacked
    kept = {}
    for mode in MEMORY_MODES:
        steps.model.memory = mode
        kept[mode] = float(steps.saved_bytes(_SMALLEST_BATCH))
    return {
        "kept": {mode: size / kept[MEMORY_MODES[0]] for mode, size in kept.items()},
        "train_seconds": spent / count,
        "eval_seconds": evaluation / count,
        "base_bytes": base,
        "image_bytes": image_bytes,
        "device_bytes": room,
        "stacked": stacked,
    }
