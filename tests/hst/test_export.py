"""`torch.export` turns a task model into one graph for batches of any size, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hst.model import TaskModel, build_classifier
from tests.hst.small_models import SMALL_HSN, small_backbone


class Predict(nn.Module):
    """The module to export: `TaskModel.predict`, with the frozen ViT as a submodule."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model, self.backbone = model, model.backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.predict(images)


@pytest.mark.parametrize(("image_size", "memory"), [(32, "speed"), (40, "memory")])
@pytest.mark.filterwarnings("ignore")
def test_an_exported_model_predicts_the_same(image_size: int, memory: str) -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3).eval()
    model.memory = memory
    batch = torch.export.Dim("batch", min=2, max=64)
    example = torch.randn(2, 3, image_size, image_size)
    exported = torch.export.export(Predict(model), (example,), dynamic_shapes=({0: batch},), strict=False)
    images = torch.randn(5, 3, image_size, image_size)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images), model.predict(images), rtol=1e-5, atol=1e-6)
