"""Runs a part of a model on a few samples at a time, keeps only its inputs, and runs it again in the backward pass. The
intermediate values of a slice then fit a cache, and memory holds only the inputs (arXiv 1604.06174).

It needs parts in which no sample depends on another, so no batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hst.layers.autocast import autocast_now

Part = Callable[..., torch.Tensor]


def by_samples(
    part: Part, modules: Sequence[nn.Module], inputs: Sequence[torch.Tensor | None], *, samples: int
) -> torch.Tensor:
    """``part(*inputs)`` in slices of ``samples`` samples, run again for the gradients.

    Args:
        part: a deterministic function of the inputs and the modules' parameters only.
        modules: the modules whose parameters ``part`` uses.
        inputs: tensors with the samples in their first dimension, or None.
        samples: number of samples in a slice.
    """
    if torch.compiler.is_compiling():  # a compiler itself decides what to keep
        return part(*inputs)
    if not torch.is_grad_enabled():
        return _slices(part, inputs, samples)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return _BySamples.apply(part, samples, len(inputs), *inputs, *parameters)


def _slices(part: Part, inputs: Sequence[torch.Tensor | None], samples: int) -> torch.Tensor:
    count = next(x.shape[0] for x in inputs if x is not None)
    if count <= samples:
        return part(*inputs)
    return torch.cat([part(*_slice(inputs, first, samples)) for first in range(0, count, samples)])


def _slice(inputs: Sequence[torch.Tensor | None], first: int, samples: int) -> list[torch.Tensor | None]:
    return [None if x is None else x[first : first + samples] for x in inputs]


class _BySamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, samples: int, num_inputs: int, *tensors: torch.Tensor | None) -> torch.Tensor:
        ctx.part, ctx.samples, ctx.num_inputs = part, samples, num_inputs
        ctx.save_for_backward(*tensors)
        ctx.autocast = autocast_now(next(x for x in tensors if x is not None))
        with ctx.autocast():
            return _slices(part, [None if x is None else x.detach() for x in tensors[:num_inputs]], samples)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        inputs, parameters = tensors[: ctx.num_inputs], tensors[ctx.num_inputs :]
        needed = ctx.needs_input_grad[3 : 3 + ctx.num_inputs]
        into_inputs: list[Any] = [torch.empty_like(x) if n else None for x, n in zip(inputs, needed, strict=True)]
        into_parameters: list[Any] = [None] * len(parameters)
        for first in range(0, grad.shape[0], ctx.samples):
            here = [None if x is None else x.detach() for x in _slice(inputs, first, ctx.samples)]
            wanted = [x.requires_grad_() for x, n in zip(here, needed, strict=True) if n and x is not None]
            with torch.enable_grad(), ctx.autocast():
                out = ctx.part(*here)
            grads = torch.autograd.grad(
                out, [*wanted, *parameters], grad[first : first + ctx.samples], allow_unused=True
            )
            own = iter(grads[: len(wanted)])
            for into, n in zip(into_inputs, needed, strict=True):
                if n:
                    part_of = next(own)
                    rows = into[first : first + ctx.samples]
                    rows.zero_() if part_of is None else rows.copy_(part_of)
            for i, found in enumerate(grads[len(wanted) :]):
                if found is not None:
                    into_parameters[i] = found if into_parameters[i] is None else into_parameters[i] + found
        return None, None, None, *into_inputs, *into_parameters
