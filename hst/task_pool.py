"""A cache of task models on one frozen ViT, as the base of a server.

Models are loaded from light checkpoints on demand, and the least recently used one leaves first. A batch may mix
samples of any tasks; tasks that allow it share one pass through the ViT (`hst.multitask`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hst.backbone import Backbone
from hst.checkpoint import load_task_model
from hst.checkpoint_header import CheckpointError, CheckpointHeader
from hst.model import TaskModel
from hst.multitask import forward_tasks
from hst.protocols import Outputs


@dataclass(frozen=True)
class PooledTask:
    """A task that is ready to predict."""

    model: TaskModel
    """The model in evaluation mode, on the pool's device."""
    header: CheckpointHeader
    """The checkpoint's header, with class names and how images are prepared."""


class TaskPool:
    """Holds at most ``capacity`` tasks in memory. Any thread may call it; it computes one batch at a time.

    Args:
        backbone: The ViT that all tasks were trained on, on its device.
        checkpoint_of: Returns the path of a task's light checkpoint, given its name. It is called once per load; that
            checkpoint is served until the task leaves the pool.
        capacity: Most tasks in memory, at least 1. A batch with more tasks keeps all of them while it is computed.

    Raises:
        ValueError: The capacity is less than 1.
    """

    def __init__(self, backbone: Backbone, checkpoint_of: Callable[[str], str | Path], *, capacity: int = 64) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: expected at least 1 task")
        self._backbone, self._checkpoint_of, self._capacity = backbone, checkpoint_of, capacity
        self._tasks: OrderedDict[str, PooledTask] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in memory; the next to leave comes first."""
        with self._lock:
            return list(self._tasks)

    def get(self, task: str) -> PooledTask:
        """Returns a task, and loads it if it is not in memory.

        Raises:
            CheckpointError: There is no checkpoint, or it is for another task or another backbone.
        """
        with self._lock:
            found = self._pooled(task)
            self._shrink()
            return found

    def drop(self, task: str) -> None:
        """Removes a task from memory, for example because it has a new checkpoint. A task not in memory is ignored."""
        with self._lock:
            self._tasks.pop(task, None)

    @torch.no_grad()
    def predict(self, tasks: Sequence[str], images: Sequence[torch.Tensor]) -> list[Outputs]:
        """The outputs of a batch that may mix tasks.

        Args:
            tasks: The task of each sample.
            images: Normalised images (3, H, W) on the backbone's device, each prepared as its task's header says.

        Returns:
            For each sample, the outputs of its task's head: logits (classes,) for a classification head. The head's
            ``decode`` turns a batch of one into an answer for people.

        Raises:
            ValueError: Tasks and images differ in number, or an image has another shape or type.
            CheckpointError: As for `get`; then nothing is computed.
        """
        if len(tasks) != len(images):
            raise ValueError(f"{len(tasks)} tasks for {len(images)} images")
        for i, image in enumerate(images):
            if image.dim() != 3 or len(image) != 3 or not image.is_floating_point():
                kind = str(image.dtype).removeprefix("torch.")
                raise ValueError(
                    f"image {i} is {kind} {tuple(image.shape)}: expected a normalised image (3, H, W) of "
                    f"floating-point numbers, as hst.preprocessing.Preprocessing.load gives it in a batch of one"
                )
        places: dict[tuple[str, torch.Size], list[int]] = {}
        for i, (task, image) in enumerate(zip(tasks, images, strict=True)):
            places.setdefault((task, image.shape), []).append(i)
        if not places:
            return []
        with self._lock:
            try:
                models = [self._pooled(task).model for task, _ in places]
                batches = [torch.stack([images[i] for i in own]) for own in places.values()]
                outputs = forward_tasks(models, batches)
            finally:
                self._shrink()
        found: dict[int, Outputs] = {}
        for own, batch in zip(places.values(), outputs, strict=True):
            found.update(zip(own, _samples(batch, len(own)), strict=True))
        return [found[i] for i in range(len(images))]

    def _pooled(self, task: str) -> PooledTask:
        """Returns a task, loads it if needed and marks it as the most recently used."""
        if task not in self._tasks:
            path = self._checkpoint_of(task)
            model, header = load_task_model(path, self._backbone)
            if header.task != task:
                raise CheckpointError(f"{path}: is a checkpoint of {header.task}, and {task} was asked for")
            device = next(self._backbone.vit.parameters()).device
            self._tasks[task] = PooledTask(model.to(device), header)
        self._tasks.move_to_end(task)
        return self._tasks[task]

    def _shrink(self) -> None:
        while len(self._tasks) > self._capacity:
            self._tasks.popitem(last=False)


def _samples(outputs: Outputs, count: int) -> list[Outputs]:
    """The outputs of each sample of a batch."""
    if isinstance(outputs, torch.Tensor):
        return list(outputs)
    return [{name: value[i] for name, value in outputs.items()} for i in range(count)]
