"""The group of processes that train one unit together: who am I, on what device, and sums over all."""

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
    """Processes; with more than one, torch.distributed is initialised."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this worker computes."""
    device_share: float = 1.0
    """Of the device, where several tasks are on it."""

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` on the device. What a GPU has to do before is not waited for, as it would be for pageable memory."""
        if self.device.type != "cuda":
            return x.to(self.device)
        return x.pin_memory().to(self.device, non_blocking=True)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, rows: torch.Tensor, own: slice, total: int) -> torch.Tensor:
        """The ``rows`` of all workers, (total, ...), in everyone's hands; ``own`` says which of them are this one's.

        By a sum, which every process group has for every device and for slices of unequal size.
        """
        if self.size == 1:
            return rows
        whole = rows.new_zeros((total, *rows.shape[1:]))
        whole[own] = rows
        return self.all_reduce(whole)
