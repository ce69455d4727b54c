"""Peak memory of this process, and what a forward pass keeps for its backward pass."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable

import torch
from torch.autograd.graph import saved_tensors_hooks


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes allocated on a CUDA device so far, else the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def saved_bytes(forward: Callable[[], object], *, own: Iterable[torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass: every piece of memory once, without what is there anyway.

    Args:
        forward: returns what holds on to them, the loss.
        own: parameters and buffers, the frozen ones too.
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
