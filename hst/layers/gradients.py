"""Gradients as return values, in the memory layout that ``backward()`` gives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def gradients_of(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """The gradient of each parameter; None if the loss does not depend on it.

    ``torch.autograd.grad`` alone does not ensure the layout. A convolution in channels-last gives a gradient with other
    strides than its parameter, which a fused optimiser misreads. Two parameters that are added share one gradient.
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
