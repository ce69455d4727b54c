"""Gradients as return values equal those of backward()."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hst.layers.gradients import gradients_of
from hst.model import build_classifier
from tests.hst.small_models import SMALL_HSN, small_backbone


def test_they_are_laid_out_as_their_parameters_each_in_memory_of_its_own() -> None:
    kernel = torch.randn(4, 3, 3, 3, requires_grad=True)
    one, other, unused = (torch.randn(4, requires_grad=True) for _ in range(3))
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    out = F.conv2d(images, kernel)
    loss = out.square().sum() + (one + other).square().sum()
    loss.backward(retain_graph=True)
    raw = torch.autograd.grad(loss, [kernel, one, other], retain_graph=True)
    assert raw[0].stride() != kernel.stride(), "otherwise this test shows nothing"
    assert raw[1].data_ptr() == raw[2].data_ptr(), "otherwise this test shows nothing"
    found = gradients_of(loss, [kernel, one, other, unused])
    assert found[3] is None
    for parameter, grad in zip((kernel, one, other), found, strict=False):
        assert grad is not None
        assert parameter.grad is not None
        assert torch.equal(grad, parameter.grad)
        assert grad.stride() == parameter.stride()
    places = [grad.data_ptr() for grad in found if grad is not None]
    assert len(set(places)) == 3


def test_of_a_task_model() -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3).train()
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    model(images, targets)["loss"].backward()
    found = gradients_of(model(images, targets)["loss"], list(model.parameters()))
    for (name, parameter), grad in zip(model.named_parameters(), found, strict=True):
        assert grad is not None, name
        assert parameter.grad is not None, name
        assert grad.stride() == parameter.grad.stride(), name
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-7, msg=name)
