"""Peak memory of this process, and what a forward pass keeps for its backward pass."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable

import torch
from torch.autograd.graph import saved_tensors_hooks


def peak_memory_bytes(device: torch.device) -> int:
    """The peak of allocated bytes on a CUDA device, else the process's largest resident set in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def saved_bytes(forward: Callable[[], object], *, own: Iterable[torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass. Each piece of memory counts once.

    Args:
        forward: Runs the forward pass and returns the loss, which keeps those bytes alive.
        own: Parameters and buffers, frozen ones included; they do not count.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        held = forward()
    del held
    return sum(kept.values())
