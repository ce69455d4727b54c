"""A step that keeps less in memory has the same gradients and batch statistics."""

from __future__ import annotations

import pytest
import torch

from hst import plain
from hst.config import MEMORY_MODES
from hst.layers.drop_path import draw_path_scales
from hst.model import TaskModel, build_classifier
from hst.randomness import generator
from pipeline.training.memory import saved_bytes
from tests.hst.small_models import SMALL_HSN, small_backbone


def model() -> TaskModel:
    return build_classifier(small_backbone(dtype=torch.float64), SMALL_HSN, num_classes=3).double().train()


IMAGES = torch.randn(5, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("mode", MEMORY_MODES)
def test_every_mode_has_the_gradients_and_statistics_of_the_plain_vit(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hst.side.hsn.SLICE_BYTES", 1)  # a sample at a time
    expected, ours = model(), model()
    ours.memory = mode
    scales = draw_path_scales(ours.path_rates(0.3), 5, generator(0, "scales"))
    with plain.only():
        expected(IMAGES, TARGETS, scales)["loss"].backward()
    ours(IMAGES, TARGETS, scales)["loss"].backward()
    for (name, parameter), other in zip(ours.named_parameters(), expected.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert other.grad is not None, name
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-10, atol=1e-11, msg=name)
    for (name, buffer), same in zip(ours.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(buffer, same, rtol=1e-12, atol=1e-12, msg=name)


def test_each_mode_keeps_less_than_the_one_before() -> None:
    one = model()
    own = [*one.parameters(), *one.buffers(), *one.backbone.vit.parameters()]
    kept = []
    for mode in MEMORY_MODES:
        one.memory = mode
        kept.append(saved_bytes(lambda: one(IMAGES, TARGETS)["loss"], own=own))
    assert kept[0] > kept[1] > kept[2]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="memory='less': expected one of speed, balanced, memory"):
        model().memory = "less"
