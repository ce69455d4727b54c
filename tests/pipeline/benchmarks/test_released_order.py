"""The released order gives the same values, gradients and batch statistics as the project's own order."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from hst.layers.drop_path import draw_path_scales
from hst.model import build_classifier
from hst.randomness import generator
from pipeline.benchmarks.released_order import ReleasedOrder
from tests.hst.small_models import SMALL_HSN, small_backbone


@pytest.mark.parametrize(
    ("hsn", "head_input"),
    [
        ({}, "side"),
        ({"num_registers": 3, "share_bridge": False}, "side+cls"),
        ({"num_registers": 0}, "side"),
        ({"use_global_token": False, "tune_backbone_norms": False}, "side"),
        ({"fine_grained_injection": False}, "side"),
    ],
    ids=str,
)
@pytest.mark.parametrize("image_size", [32, 40])
def test_both_orders_are_one_model(hsn: dict[str, object], head_input: str, image_size: int) -> None:
    config = dataclasses.replace(SMALL_HSN, **hsn)  # type: ignore[arg-type]
    model = build_classifier(small_backbone(dtype=torch.float64), config, num_classes=3, head_input=head_input).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = ReleasedOrder(copy.deepcopy(model))
    images = torch.randn(4, 3, image_size, image_size, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 1])
    scales = draw_path_scales(model.path_rates(0.3), 4, generator(0, "scales"))
    for one in (model.train(), other.train()):
        one(images, targets, scales)["loss"].backward()
    for (name, ours), theirs in zip(model.named_parameters(), other.model.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10, msg=name)
    for (name, buffer), same in zip(model.named_buffers(), other.model.buffers(), strict=True):
        torch.testing.assert_close(buffer, same, msg=name)
    torch.testing.assert_close(model.predict(images), other.predict(images), rtol=1e-10, atol=1e-10)
