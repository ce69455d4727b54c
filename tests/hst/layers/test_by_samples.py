"""A part that runs in slices, and again in the backward pass, has the values and gradients of a single run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hst.layers.by_samples import by_samples


class Part(nn.Module):
    """Uses one of its two layers, and an input that may be absent."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 5), nn.Linear(5, 5)
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
        self.calls.append(x.shape[0])
        y = torch.tanh(self.used(x)) * other.mean(1, keepdim=True)
        return y if scale is None else y * scale[:, None]


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 7), samples=st.integers(1, 8), scaled=st.booleans(), frozen=st.booleans())
def test_values_and_gradients_are_those_of_one_call(batch: int, samples: int, scaled: bool, frozen: bool) -> None:
    part = Part().double()
    x = torch.randn(batch, 5, dtype=torch.float64, requires_grad=True)
    other = torch.randn(batch, 3, dtype=torch.float64, requires_grad=not frozen)
    scale = torch.rand(batch, dtype=torch.float64) if scaled else None
    inputs = [x, *([] if frozen else [other]), *part.used.parameters()]
    expected = part(x, scale, other)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    part.calls.clear()
    out = by_samples(part, [part], [x, scale, other], samples=samples)
    assert max(part.calls) <= samples
    assert sum(part.calls) == batch
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad((out * weights).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_parameter_that_is_not_used_has_no_gradient() -> None:
    part = Part()
    by_samples(part, [part], [torch.randn(4, 5), None, torch.randn(4, 3)], samples=3).sum().backward()
    assert part.unused.weight.grad is None
    assert part.used.weight.grad is not None


def test_only_the_inputs_are_kept() -> None:
    part, x, other = Part(), torch.randn(4, 5), torch.randn(4, 3)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        by_samples(part, [part], [x, None, other], samples=4)
    assert set(kept) <= {t.data_ptr() for t in (x, other, *part.parameters())}


def test_without_gradients_nothing_is_run_again() -> None:
    part = Part()
    with torch.no_grad():
        out = by_samples(part, [part], [torch.randn(4, 5), None, torch.randn(4, 3)], samples=2)
    assert not out.requires_grad
    assert part.calls == [2, 2]


@pytest.mark.parametrize("low", [False, True])
def test_the_second_run_is_in_the_types_of_the_first(low: bool) -> None:
    part, seen = Part(), list[torch.dtype]()
    part.used.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = by_samples(part, [part], [torch.randn(4, 5), None, torch.randn(4, 3)], samples=2)
    out.float().sum().backward()
    assert seen == [torch.bfloat16 if low else torch.float32] * 4


def test_a_backward_pass_within_autocast_has_all_gradients() -> None:
    part = Part()
    with torch.autocast("cpu", torch.bfloat16):
        by_samples(part, [part], [torch.randn(4, 5), None, torch.randn(4, 3)], samples=2).float().sum().backward()
    assert part.used.weight.grad is not None
    assert part.used.weight.grad.abs().sum() > 0
