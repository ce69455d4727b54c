"""The group of processes that train one unit together: this process's rank and device, and sums over all processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Workers:
    """One worker's view of its group. The default is a single process on the CPU."""

    rank: int = 0
    """From 0 to size - 1."""
    size: int = 1
    """Number of processes; with more than one, torch.distributed is initialised."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """The device on which this worker computes."""
    device_share: float = 1.0
    """This worker's share of the device; below 1 if several tasks use it."""

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """Copies ``x`` to the device. Pinned memory avoids waiting for the GPU's earlier work."""
        if self.device.type != "cuda":
            return x.to(self.device)
        return x.pin_memory().to(self.device, non_blocking=True)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, rows: torch.Tensor, own: slice, total: int) -> torch.Tensor:
        """Returns the ``rows`` of all workers, (total, ...), to every worker; ``own`` selects this worker's rows.

        It uses a sum, which every process group supports on every device, also for slices of unequal size.
        """
        if self.size == 1:
            return rows
        whole = rows.new_zeros((total, *rows.shape[1:]))
        whole[own] = rows
        return self.all_reduce(whole)
