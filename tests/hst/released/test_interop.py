"""The released code's checkpoints convert both ways, and give the logits of the released code's formulas."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hst.backbone import backbone_identity
from hst.model import build_classifier
from hst.released.interop import model_from_official, official_state_dict
from tests.hst.released.official_reference import official_logits, random_official_state
from tests.hst.small_models import SMALL_HSN, small_backbone

HEADS: dict[str, Any] = {"vit_num_heads": 2, "side_num_heads": (2, 3, 4, 5)}
DEEP: dict[str, Any] = {"depths": (2, 2, 2, 2)}

SIZES: list[dict[str, Any]] = [
    {"image_size": 64},
    {"image_size": 64, **DEEP, "num_registers": 0},
    {"image_size": 64, **DEEP, "num_registers": 2},
    {"image_size": 96, "num_registers": 3},
    {"image_size": 80, **DEEP},  # 5 x 5 patches: the global token is the mean of the interpolated map
    {"image_size": 40, "patch_size": 8},
    {"image_size": 64, "patch_size": 8, "num_registers": 2},
    {"image_size": 70, "patch_size": 14, **DEEP},
    {"image_size": 98, "patch_size": 14},
    {"image_size": 75, "patch_size": 16},  # not a multiple of the patch size
    {"image_size": 96, "patch_size": 32},  # stage 4 is as fine as the ViT, the others finer
    {"image_size": 64, "depths": (1, 3, 2, 1)},
    {"image_size": 64, "widths": (8, 8, 8, 8), "depths": (1, 3, 2, 2)},
    {"image_size": 64, "embed_dim": 40, "vit_mlp": 100, "side_mlp_ratio": 2, "widths": (16, 12, 8, 40)},
]


def heads(size: dict[str, Any]) -> dict[str, Any]:
    if "widths" not in size:
        return HEADS
    return HEADS | {"side_num_heads": [4 if width % 4 == 0 else 1 for width in size["widths"]]}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(f"{k}={v}" for k, v in size.items()))
def test_the_logits_are_those_of_the_released_formulas(
    size: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    state = random_official_state(**size, dtype=dtype)
    images = torch.randn(2, 3, size["image_size"], size["image_size"], dtype=dtype)
    expected = official_logits(state, images, depths=size.get("depths", (1, 1, 1, 1)), **heads(size))
    logits = model_from_official(state, image_size=size["image_size"], **heads(size)).predict(images)
    assert logits.dtype == dtype
    assert expected.std() > 0.1, "logits that hardly differ would hide an error"
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(f"{k}={v}" for k, v in size.items()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back_is_exact(size: dict[str, Any], dtype: torch.dtype) -> None:
    state = random_official_state(**size, dtype=dtype)
    back = official_state_dict(model_from_official(state, image_size=size["image_size"], **heads(size)))
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == value.dtype, name
        assert torch.equal(back[name], value), name


def test_out_and_in_again_is_exact_and_keeps_the_identity() -> None:
    backbone = small_backbone()
    model = build_classifier(backbone, SMALL_HSN, num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    images = torch.randn(2, 3, 48, 48)
    model(images, torch.tensor([0, 1]))  # changes the running statistics
    for image_size in (None, 32, 48):  # the ViT's own grid and others, whose position embeddings are resampled
        state = official_state_dict(model, image_size=image_size)
        again = model_from_official(state, image_size=image_size or 32, backbone=backbone, **HEADS)
        assert again.backbone is backbone
        assert again.extractor.config == model.extractor.config
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
    reference = official_logits(state, images, depths=(1, 1, 1, 1), **HEADS)
    torch.testing.assert_close(model.predict(images), reference, rtol=1e-5, atol=1e-5)


def test_a_model_from_a_checkpoint_can_be_trained_and_shares_no_memory_with_it() -> None:
    state = random_official_state(image_size=64)
    kept = {name: value.clone() for name, value in state.items()}
    model = model_from_official(state, image_size=64, **HEADS).train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))["loss"].backward()
    optimizer.step()
    assert all(torch.equal(state[name], value) for name, value in kept.items())


def test_without_a_backbone_the_identity_is_of_the_state_dicts_own_vit() -> None:
    state = random_official_state(image_size=64)
    backbone = model_from_official(state, image_size=64, **HEADS).backbone
    assert backbone.name == "official"
    assert backbone.identity == backbone_identity({k: state[k] for k in backbone.vit.state_dict()})


@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s, "arch": "ViT_HSN"}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_training_checkpoint_around_it_is_opened(wrap: Any, prefix: str) -> None:
    state = random_official_state(image_size=64)
    wrapped = wrap({prefix + name: value for name, value in state.items()})
    back = official_state_dict(model_from_official(wrapped, image_size=64, **HEADS))
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_half_precision_becomes_float32() -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in random_official_state(image_size=64).items()}
    assert model_from_official(state, image_size=64, **HEADS).predict(torch.zeros(1, 3, 64, 64)).dtype == torch.float32


def test_fewer_side_blocks_than_vit_blocks_are_refused() -> None:
    for widths in ((8, 12, 16, 20), (8, 8, 8, 8)):
        state = random_official_state(image_size=64, depths=(1, 2, 1, 1), widths=widths)
        state = {k: v for k, v in state.items() if not k.startswith("m_block2.1.")}
        with pytest.raises(ValueError, match="expected one side block for each ViT block"):
            model_from_official(state, image_size=64, vit_num_heads=2, side_num_heads=(1, 1, 1, 1))


def test_all_faults_are_listed_in_one_error() -> None:
    state = random_official_state(image_size=64)
    del state["m_norm2.bias"], state["blocks.2.attn.proj.weight"]
    state["reg_token"] = torch.zeros(1, 4, 24)
    state["m_block1.0.attn.q.weight"] = torch.zeros(8, 9)
    with pytest.raises(ValueError, match="not a state dict of the released code") as error:
        model_from_official(state, image_size=64, **HEADS)
    for fault in (
        "m_norm2.bias is missing",
        "blocks.2.attn.proj.weight is missing",
        "reg_token is unknown",
        "m_block1.0.attn.q.weight is (8, 9), expected (8, 8)",
    ):
        assert fault in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 96}, r"pos_embed is \(1, 17, 24\), expected \(1, 37, 24\) for images of 96 pixels"),
        ({"image_size": 8}, "smaller than one patch of 16"),
        ({"vit_num_heads": 7}, "vit_num_heads=7: does not divide the ViT's width 24"),
        ({"side_num_heads": (3, 3, 4, 5)}, "3 heads do not divide width 8"),
        ({"side_num_heads": (2, 3)}, "num_heads"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    state = random_official_state(image_size=64)
    with pytest.raises(ValueError, match=message):
        model_from_official(state, **({"image_size": 64} | HEADS | changes))


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"state_dict": {"fc.weight": torch.zeros(2, 2)}}, {"epoch": 3}])
def test_something_else_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a state dict of the released code"):
        model_from_official(state, image_size=64, **HEADS)


def test_another_backbone_is_refused_by_the_tensor_that_differs() -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    state = official_state_dict(model)
    with pytest.raises(ValueError, match=r"not the ViT of this state dict.*blocks\.0\.attn\.qkv\.weight"):
        model_from_official(state, image_size=32, backbone=small_backbone(seed=1), **HEADS)
    changed = state | {"norm.bias": state["norm.bias"] + 2e-7}
    with pytest.raises(ValueError, match=r"1 frozen tensors differ from its own: norm\.bias"):
        model_from_official(changed, image_size=32, backbone=model.backbone, **HEADS)
    with pytest.raises(ValueError, match="vit_num_heads=4: backbone 'small' has 2 heads"):
        model_from_official(state, image_size=32, backbone=model.backbone, **(HEADS | {"vit_num_heads": 4}))


@pytest.mark.parametrize(
    ("changes", "head_input", "named"),
    [
        ({"share_bridge": False}, "side", "share_bridge=False"),
        ({"use_global_token": False}, "side", "use_global_token=False"),
        ({"fine_grained_injection": False}, "side", "fine_grained_injection=False"),
        ({}, "side+cls", "head_input='side.cls'"),
        ({"depths": (1, 1, 1, 1)}, "side", r"depths=\(1, 1, 1, 1\) beside 5 ViT blocks"),
    ],
)
def test_what_the_released_code_has_not_is_refused_by_name(
    changes: dict[str, Any], head_input: str, named: str
) -> None:
    config = dataclasses.replace(SMALL_HSN, **changes)
    model = build_classifier(
        small_backbone(depth=5 if changes.get("depths") else 4), config, num_classes=3, head_input=head_input
    )
    with pytest.raises(ValueError, match=f"no counterpart of .*{named}"):
        official_state_dict(model)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"reg_tokens": 4}, "the ViT's reg_token"),
        ({"init_values": 0.1}, r"the ViT's blocks\.0\.ls1\.gamma"),
        ({"class_token": False, "global_pool": "avg"}, "a ViT without cls_token"),
        ({"pre_norm": True}, "the ViT's norm_pre"),
        ({"no_embed_class": True}, "class token has no position embedding"),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-5)}, "another eps"),
        ({"act_layer": "gelu_tanh"}, "another activation"),
    ],
)
def test_a_vit_that_the_released_code_has_not_is_refused_by_name(kwargs: dict[str, Any], named: str) -> None:
    model = build_classifier(small_backbone(**kwargs), SMALL_HSN, num_classes=3)
    with pytest.raises(ValueError, match=f"no counterpart of .*{named}"):
        official_state_dict(model)


def test_untuned_norms_and_no_registers_travel_too() -> None:
    backbone = small_backbone()
    config = dataclasses.replace(SMALL_HSN, tune_backbone_norms=False, num_registers=0)
    model = build_classifier(backbone, config, num_classes=3)
    state = official_state_dict(model)
    assert state["m_embeddings.0"].shape == (1, 0, 24)
    images = torch.randn(2, 3, 32, 32)
    again = model_from_official(state, image_size=32, backbone=backbone, **HEADS)
    torch.testing.assert_close(again.predict(images), model.predict(images))
