"""Task models on one frozen ViT that are loaded from light checkpoints as they are asked for, and go when they were not
for the longest: what a server is built on. A batch may have samples of any tasks; it is one pass through the ViT for
all that allow it (`hst.multitask`).
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
    """In evaluation mode, on the pool's device."""
    header: CheckpointHeader
    """Class names, and how its images are prepared."""


class TaskPool:
    """At most ``capacity`` tasks in memory; from any thread, one batch at a time.

    Args:
        backbone: the ViT that all tasks were trained on, on its device.
        checkpoint_of: given a task's name, the path of its light checkpoint. Asked once a load: whatever is there then
            is served until the task has left.
        capacity: tasks, at least 1. A batch of more has all it needs while it is computed.

    Raises:
        ValueError: no capacity.
    """

    def __init__(self, backbone: Backbone, checkpoint_of: Callable[[str], str | Path], *, capacity: int = 64) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: expected at least 1 task")
        self._backbone, self._checkpoint_of, self._capacity = backbone, checkpoint_of, capacity
        self._tasks: OrderedDict[str, PooledTask] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def tasks(self) -> list[str]:
        """In memory, the next to go first."""
        with self._lock:
            return list(self._tasks)

    def get(self, task: str) -> PooledTask:
        """A task, loaded if it is not in memory.

        Raises:
            CheckpointError: there is none, or it is not of this task and for this backbone.
        """
        with self._lock:
            found = self._pooled(task)
            self._shrink()
            return found

    def drop(self, task: str) -> None:
        """Takes a task out of memory, as when it has a new checkpoint; one that is not there is no matter."""
        with self._lock:
            self._tasks.pop(task, None)

    @torch.no_grad()
    def predict(self, tasks: Sequence[str], images: Sequence[torch.Tensor]) -> list[Outputs]:
        """Outputs of a mixed batch.

        Args:
            tasks: of each sample.
            images: each prepared as its task's header says, normalised, (3, H, W), on the backbone's device.

        Returns:
            For each sample what its task's head makes of it: logits (classes,) of a classification head. The head's
            ``decode`` turns a batch of one into an answer for people.

        Raises:
            ValueError: another number of tasks than of images, or something that is no image.
            CheckpointError: as `get`; nothing is computed then.
        """
        if len(tasks) != len(images):
            raise ValueError(f"{len(tasks)} tasks for {len(images)} images")
        for i, image in enumerate(images):
            if image.dim() != 3 or len(image) != 3:
                raise ValueError(f"image {i} is of shape {tuple(image.shape)}: expected (3, H, W)")
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
        """The task, now the last to go."""
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
