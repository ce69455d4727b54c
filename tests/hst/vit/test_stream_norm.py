"""Compares the norms' kernels with torch's operations; without a GPU, Triton's interpreter runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hst import plain
from hst.model import TaskModel, build_classifier
from hst.multitask import forward_tasks
from hst.vit import stream_norm
from hst.vit.stream_norm import norm, norm_backward, norm_backward_by_kernel, norm_by_kernel
from tests.hst.small_models import SMALL_HSN, small_backbone

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_equal(got: Any, want: Any) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@given(
    samples=st.integers(1, 4), tokens=st.integers(1, 9), width=st.integers(1, 40), own=st.booleans(), seed=st.integers()
)
@settings(max_examples=25, deadline=None)
def test_values_and_gradients_equal_torchs(samples: int, tokens: int, width: int, own: bool, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed % 2**63)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64).to(DEVICE)

    shape = (samples, tokens, width)
    x, grad, past = randn(*shape) + 3, randn(*shape), randn(*shape)
    weight, bias = (randn(*((samples, width) if own else (width,))) for _ in range(2))
    with plain.only():
        want, *statistics = norm(x, weight, bias, 1e-6, torch.float64)
        gradients = norm_backward(grad, x, statistics, (weight, bias), past, wants_x=True, wants_affine=True)
    got, *found = norm_by_kernel(x, weight, bias, 1e-6, torch.float64)
    assert_equal([got, *found], [want, *statistics])
    assert_equal(norm_backward_by_kernel(grad, x, found, weight, past), gradients)


def test_it_comes_out_in_the_type_of_products() -> None:
    x, weight, bias = (
        torch.randn(2, 3, 16, device=DEVICE),
        torch.randn(16, device=DEVICE),
        torch.randn(16, device=DEVICE),
    )
    with plain.only():
        want = norm(x, weight, bias, 1e-6, torch.bfloat16)
    for one, other in zip(norm_by_kernel(x, weight, bias, 1e-6, torch.bfloat16), want, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-6)


def models() -> list[TaskModel]:
    backbone = small_backbone(dtype=torch.float64).to(DEVICE)
    found = [build_classifier(backbone, SMALL_HSN, num_classes=3, task=task).double() for task in ("a", "b")]
    return [model.to(DEVICE).train() for model in found]


@pytest.mark.parametrize(("together", "mode"), [(False, "memory"), (True, "speed")])
def test_models_train_the_same_with_them(together: bool, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(2, 3, 3, 40, 40, dtype=torch.float64, device=DEVICE)
    targets = torch.tensor([0, 1, 2], device=DEVICE)

    def grads() -> list[torch.Tensor]:
        ours = models()
        for model in ours:
            model.memory = mode
        if together:
            logits = forward_tasks(ours, list(images))
            losses = [model.head.losses(own, targets)["loss"] for model, own in zip(ours, logits, strict=True)]
        else:
            losses = [model(own, targets)["loss"] for model, own in zip(ours, images, strict=True)]
        torch.stack(losses).sum().backward()
        return [p.grad for model in ours for p in model.parameters() if p.grad is not None]

    with plain.only():
        want = grads()
    calls: list[tuple[int, ...]] = []

    def by_kernel(x: torch.Tensor) -> bool:
        calls.append(tuple(x.shape))
        return True

    monkeypatch.setattr(stream_norm, "_by_kernel", by_kernel)
    assert_equal(grads(), want)
    assert len(calls) > 4 * 4, "two norms of each of four blocks, forward and backward"
