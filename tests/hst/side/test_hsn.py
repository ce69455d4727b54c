"""The stages: the definition of the global token, and a whole model against its equations written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from hst.model import build_classifier
from hst.released.interop import official_state_dict
from hst.side.hsn import HSNStage
from tests.hst.released.official_reference import official_logits
from tests.hst.small_models import SMALL_HSN, small_backbone


@pytest.mark.parametrize(("patch_size", "size"), [(8, 32), (14, 70), (16, 80)])
def test_the_global_token_is_the_mean_of_the_interpolated_patch_features(patch_size: int, size: int) -> None:
    """On odd grids it is not the mean of the patches."""
    config = dataclasses.replace(SMALL_HSN, num_registers=0)
    backbone = small_backbone(img_size=size, patch_size=patch_size)
    model = build_classifier(backbone, config, num_classes=3)
    stage = model.extractor.side.stages[0]
    assert isinstance(stage, HSNStage)
    seen: list[torch.Tensor] = []
    block = stage.blocks[0]
    block.register_forward_pre_hook(lambda _, args: seen.extend(args[:2]))
    images = torch.randn(2, 3, size, size)
    model.predict(images)
    x, meta = seen
    out = backbone(images, taps={0}, norms=model.extractor.block_norms).tokens[0][:, 1:]
    side = size // patch_size
    raw = stage.bridge.proj[0](out).transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(raw, x.shape[1:3], mode="bilinear", align_corners=False)
    torch.testing.assert_close(meta[:, 0], resized.mean((2, 3)), rtol=1e-5, atol=1e-6)
    if patch_size == 14:
        assert not torch.allclose(meta[:, 0], raw.mean((2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_registers", [0, 1, 64])
@pytest.mark.parametrize("image_size", [32, 56, 72])
def test_a_trained_model_equals_the_released_formulas(num_registers: int, image_size: int) -> None:
    """The weights go through `official_state_dict`. Other image sizes than the ViT's resample position embeddings."""
    config = dataclasses.replace(SMALL_HSN, num_registers=num_registers)
    model = build_classifier(small_backbone(dtype=torch.float64), config, num_classes=3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    images = torch.randn(4, 3, image_size, image_size, dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images, torch.tensor([0, 1, 2, 1]))["loss"].backward()
        optimizer.step()
    state = official_state_dict(model, image_size=image_size)
    expected = official_logits(state, images, depths=(1, 1, 1, 1), vit_num_heads=2, side_num_heads=SMALL_HSN.num_heads)
    torch.testing.assert_close(model.predict(images), expected, rtol=1e-10, atol=1e-10)
