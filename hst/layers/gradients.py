"""Gradients as values, laid out as ``backward()`` leaves them in parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def gradients_of(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Of each parameter, None where the loss does not depend on it.

    ``torch.autograd.grad`` gives what comes: of a convolution in channels-last an order of its own, in which a fused
    optimiser reads other numbers than those of the parameter's places, and of two that are added one tensor for both.
    """
    found: list[torch.Tensor | None] = []
    places = set()
    for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        if grad is not None:
            place = grad.data_ptr()
            if grad.stride() != parameter.stride() or place in places:
                grad = torch.empty_like(parameter, dtype=grad.dtype).copy_(grad)
            places.add(place)
        found.append(grad)
    return found
