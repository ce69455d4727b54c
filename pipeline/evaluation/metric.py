"""What evaluates a split: a metric gathers a model's outputs and the targets, batch by batch, over all workers."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from hst.protocols import Outputs, Targets


class Group(Protocol):
    """The processes that train and evaluate together; `pipeline.training.workers.Workers` is one."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` on the device."""
        ...

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        ...

    def gather(self, rows: torch.Tensor, own: slice, total: int) -> torch.Tensor:
        """The rows of all processes, (total, ...); ``own`` says which of them are this process's."""
        ...


class Metric(Protocol):
    """Gathers what one evaluation of a split needs."""

    def update(self, outputs: Outputs, targets: Targets) -> None:
        """Adds a batch of this process; nothing in it waits for the device.

        The next batch may overwrite ``outputs``: a metric copies what it keeps of them.
        """
        ...

    def merge(self, group: Group) -> None:
        """Makes what all processes have gathered known to each of them; called once, after the last batch."""
        ...

    @property
    def seen(self) -> int:
        """Number of samples that were added; after `merge`, over all processes."""
        ...

    def compute(self) -> dict[str, float]:
        """The results by name, after `merge`. The name of the task's measure is among them.

        Raises:
            ValueError: no sample was added.
        """
        ...

    def details(self) -> dict[str, Any]:
        """Plain JSON values that pictures are drawn from, by name; kept with the run's results."""
        ...
