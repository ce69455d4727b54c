"""What a task trains: exact names, exact counts, switches, and predictions that leave no trace."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from hst.backbone import Backbone
from hst.config import HSN_PRESETS, HSNConfig
from hst.describe import count_parts
from hst.model import TaskModel, build_classifier
from hst.multitask import forward_tasks
from hst.vit.weights import build_skeleton
from tests.hst.small_models import SMALL_HSN, small_backbone

BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}


def affine(*modules: str) -> set[str]:
    return {f"{module}.{part}" for module in modules for part in ("weight", "bias")}


def expected_parameters(vit_depth: int = 4) -> set[str]:
    """The names of HSN on a ViT of 4 blocks, a side block each."""
    names = affine(*(f"extractor.block_norms.{norm}.{i}" for norm in ("norm1", "norm2") for i in range(vit_depth)))
    names |= {f"extractor.meta_register.tokens.{i}" for i in range(vit_depth)}
    names |= affine("head.linear")
    for s in range(4):
        stage = f"extractor.side.stages.{s}"
        if s == 0:
            names |= {f"{stage}.embed.conv1.weight"} | affine(f"{stage}.embed.batch_norm", f"{stage}.embed.conv2")
        else:
            names |= affine(f"{stage}.embed.conv")
        names |= affine(f"{stage}.embed.norm", f"{stage}.norm", f"{stage}.bridge.proj.0")
        names |= affine(f"{stage}.bridge.register_norm.0")
        attention = (f"{stage}.blocks.0.attn.{part}" for part in ("q", "k", "v", "proj"))
        names |= affine(*attention, *(f"{stage}.blocks.0.{part}" for part in ("norm1", "norm2", "mlp.0", "mlp.2")))
    return names


def expected_buffers() -> set[str]:
    return {f"{norm}.{b}" for norm in ("extractor.side.stages.0.embed.batch_norm", "head.norm") for b in BUFFERS}


def test_the_parameters_and_buffers_are_exactly_the_tasks() -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected_parameters()
    assert {name for name, _ in model.named_parameters()} == expected_parameters()
    assert set(model.state_dict()) == expected_parameters() | expected_buffers()


def test_a_head_on_the_class_token_adds_only_its_statistics_and_columns() -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3, head_input="side+cls")
    assert {name for name, _ in model.named_parameters()} == expected_parameters()
    assert set(model.state_dict()) == expected_parameters() | expected_buffers() | {
        f"head.class_token_norm.{buffer}" for buffer in BUFFERS
    }
    assert model.head.linear.weight.shape == (3, 20 + 24)
    assert model.head.spec()["input"] == "side+cls"


COUNTS = {
    ("vit_base_patch16_224", "HSN_B"): 764_840,
    ("vit_base_patch16_224", "HSN_L"): 10_404_096,
    ("vit_base_patch16_224", "HSN_S"): 270_228,
    ("vit_large_patch16_224", "HSN_B"): 1_360_544,
    ("vit_large_patch16_224", "HSN_L"): 19_136_320,
}


def on_meta(vit: str, hsn: HSNConfig, num_classes: int = 100) -> TaskModel:
    with torch.device("meta"):
        return build_classifier(Backbone(vit, build_skeleton(vit), ""), hsn, num_classes=num_classes)


@pytest.mark.parametrize(("vit", "preset"), COUNTS)
def test_the_counts_are_those_of_the_released_code(vit: str, preset: str) -> None:
    model = on_meta(vit, HSN_PRESETS[preset])
    parts = count_parts(model)
    head = (HSN_PRESETS[preset].widths[-1] + 1) * 100
    assert parts["head"] == head
    assert sum(parts.values()) - head == COUNTS[vit, preset]
    assert sum(p.numel() for p in model.parameters()) == COUNTS[vit, preset] + head


def test_the_count_of_every_part_of_hsn_b_is_that_of_the_released_code() -> None:
    assert count_parts(on_meta("vit_base_patch16_224", HSN_PRESETS["HSN_B"])) == {
        "LayerNorms of the ViT's blocks": 36_864,
        "Meta-Register": 9_216,
        "T-Bridge": 166_104,
        "norms of the bridged registers": 1_296,
        "conv stem": 5_120,
        "downsamples": 83_496,
        "side blocks": 462_312,
        "norms of the stages": 432,
        "head": 7_300,
    }


SWITCHES: list[tuple[dict[str, Any], str]] = [
    # switch, pattern of the parameters that go with it
    ({"tune_backbone_norms": False}, r"extractor\.block_norms\."),
    ({"use_global_token": False}, ""),
    ({"fine_grained_injection": False}, ""),
    ({"num_registers": 0}, r"extractor\.meta_register\.|.*\.register_norm\."),
    (
        {"num_registers": 0, "use_global_token": False},
        r"extractor\.meta_register\.|.*\.register_norm\.|.*\.blocks\.0\.(norm1|attn)\.",
    ),
]


@pytest.mark.parametrize(("changes", "gone"), SWITCHES, ids=str)
def test_a_switch_takes_away_exactly_its_parameters_and_changes_the_output(changes: dict[str, Any], gone: str) -> None:
    backbone = small_backbone()
    model = build_classifier(backbone, dataclasses.replace(SMALL_HSN, **changes), num_classes=3)
    full = build_classifier(backbone, SMALL_HSN, num_classes=3)
    kept = {name for name in expected_parameters() if not (gone and re.match(gone, name))}
    assert {name for name, _ in model.named_parameters()} == kept
    images = torch.randn(2, 3, 32, 32)
    loss = model.train()(images, torch.tensor([0, 1]))["loss"]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    if {"use_global_token", "fine_grained_injection", "num_registers"} & set(changes):
        for name, value in full.state_dict().items():
            if name in model.state_dict():
                model.state_dict()[name].copy_(value)
        assert not torch.allclose(features(model, images), features(full, images), atol=1e-6)


def features(model: TaskModel, images: torch.Tensor) -> torch.Tensor:
    """The last stage's tokens; unlike a fresh head's logits they are not scaled down."""
    with torch.no_grad():
        return model.eval().extractor(images)[0][-1]


def test_an_unshared_bridge_has_a_projection_for_each_side_block_and_equals_the_shared_one_where_they_are_equal() -> (
    None
):
    backbone = small_backbone(depth=8)
    shared = build_classifier(backbone, SMALL_HSN, num_classes=3)
    own = build_classifier(backbone, dataclasses.replace(SMALL_HSN, share_bridge=False), num_classes=3)
    names = {name for name, _ in own.named_parameters()} - {name for name, _ in shared.named_parameters()}
    assert names == affine(*(f"extractor.side.stages.{s}.bridge.proj.1" for s in range(4)))
    state = shared.state_dict()
    own.load_state_dict({name: state[name.replace("proj.1", "proj.0")] for name in own.state_dict()})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own.predict(images), shared.predict(images), rtol=0, atol=0)


def test_only_tapped_vit_blocks_have_registers() -> None:
    model = build_classifier(
        small_backbone(depth=9), dataclasses.replace(SMALL_HSN, depths=(1, 1, 1, 1)), num_classes=3
    )
    names = {name for name, _ in model.named_parameters()}
    assert {name for name in names if "meta_register" in name} == {
        f"extractor.meta_register.tokens.{block}" for block in (1, 3, 5, 8)
    }
    assert len([name for name in names if "block_norms" in name]) == 9 * 4  # every block's norms are tuned
    assert model.predict(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("num_registers", [0, 1, 2, 64])
def test_any_number_of_registers_trains(num_registers: int) -> None:
    config = dataclasses.replace(SMALL_HSN, num_registers=num_registers)
    model = build_classifier(small_backbone(), config, num_classes=3)
    model(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))["loss"].backward()
    registers = [p for name, p in model.named_parameters() if "meta_register" in name]
    assert [tuple(p.shape) for p in registers] == [(1, num_registers, 24)] * (4 if num_registers else 0)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in registers)


def test_the_class_token_reaches_the_head() -> None:
    backbone = small_backbone()
    model = build_classifier(backbone, SMALL_HSN, num_classes=3, head_input="side+cls")
    images = torch.randn(5, 3, 32, 32)
    pyramid, token = model.extractor(images, class_token=True)
    assert token is not None
    expected = model.head.linear(
        torch.cat([normalised(pyramid[-1].mean((1, 2))), normalised(token)], dim=1)
    )  # in training by the batch's own statistics
    logits = model.train().outputs(images, None)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()


def test_the_loss_is_the_mean_cross_entropy_with_smoothing_as_asked() -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3).train()
    targets = torch.tensor([0, 1, 2, 1])
    model.head.label_smoothing = 0.1
    images = torch.randn(4, 3, 32, 32)
    log_p = model.outputs(images, None).detach().log_softmax(1)
    expected = -(0.9 * log_p[range(4), targets] + 0.1 * log_p.mean(1)).mean()
    losses = model(images, targets)
    assert losses.keys() == {"loss"}
    torch.testing.assert_close(losses["loss"].detach(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_soft_targets_is_timms_whatever_the_smoothing_of_labels(dtype: torch.dtype) -> None:
    model = build_classifier(small_backbone(dtype=dtype), SMALL_HSN, num_classes=3).to(dtype).train()
    targets = torch.rand(4, 3).softmax(1)
    model.head.label_smoothing = 0.1
    images = torch.randn(4, 3, 32, 32, dtype=dtype)
    loss = model(images, targets)["loss"]
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(model.outputs(images, None), targets.to(dtype)))


@pytest.mark.parametrize("training", [True, False])
def test_predict_leaves_mode_and_buffers_alone_and_uses_evaluation_statistics(training: bool) -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    model.train()(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    model.train(training)
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(3, 3, 32, 32)
    logits = model.predict(images)
    assert not logits.requires_grad
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    one_by_one = torch.cat([model.predict(image[None]) for image in images])
    torch.testing.assert_close(logits, one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_estimated_statistics_are_the_mean_over_the_batches_whatever_was_there_before(training: bool) -> None:
    model = build_classifier(small_backbone(dtype=torch.float64), SMALL_HSN, num_classes=3).double().train(training)
    draws = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 32, 32, generator=draws, dtype=torch.float64) for _ in range(3)]
    stem = model.extractor.side.stages[0].embed
    maps = [stem.conv1(batch).transpose(0, 1).flatten(1) for batch in batches]
    expected = torch.stack([torch.stack([m.mean(1), m.var(1)]) for m in maps]).mean(0)
    kept = {name: value.clone() for name, value in model.named_parameters()}
    for before in (0.0, 5.0):
        stem.batch_norm.running_mean.fill_(before)
        stem.batch_norm.running_var.fill_(before)
        stem.batch_norm.num_batches_tracked.fill_(2)
        for number, batch in enumerate(batches, 1):
            model.estimate_statistics(batch, number)
        found = torch.stack([stem.batch_norm.running_mean, stem.batch_norm.running_var])
        torch.testing.assert_close(found, expected)
    assert model.training == training
    assert stem.batch_norm.num_batches_tracked == 2, "it counts training batches"
    assert all(torch.equal(value, kept[name]) for name, value in model.named_parameters())
    model.train()
    model(batches[0], torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(stem.batch_norm.running_mean, 0.9 * expected[0] + 0.1 * maps[0].mean(1))


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (64, 64), (16, 16), (50, 36)])
def test_the_pyramid_has_strides_4_8_16_32_for_any_image_size(size: tuple[int, int]) -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    pyramid, token = model.extractor(torch.randn(1, 3, *size))
    assert token is None
    expected = [((size[0] + 1) // 2 // 2, (size[1] + 1) // 2 // 2)]
    for _ in range(3):
        expected.append(((expected[-1][0] + 1) // 2, (expected[-1][1] + 1) // 2))
    assert [tuple(x.shape) for x in pyramid] == [
        (1, *grid, width) for grid, width in zip(expected, SMALL_HSN.widths, strict=True)
    ]


def test_a_model_is_a_function_of_seed_and_task_and_leaves_the_global_generator_alone() -> None:
    backbone = small_backbone()

    def built(**kwargs: Any) -> dict[str, torch.Tensor]:
        return build_classifier(backbone, SMALL_HSN, num_classes=3, **kwargs).state_dict()

    torch.manual_seed(1)
    first = built(seed=3, task="a")
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    second = built(seed=3, task="a")
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "extractor.meta_register.tokens.0"
    assert not torch.equal(built(seed=4, task="a")[name], first[name])
    assert not torch.equal(built(seed=3, task="b")[name], first[name])


def test_initial_values_are_those_of_the_released_code() -> None:
    backbone = small_backbone(embed_dim=96)
    model = build_classifier(backbone, HSNConfig(), num_classes=50)
    state = model.state_dict()
    for i in range(4):
        norm = backbone.vit.blocks[i].norm2
        assert torch.equal(state[f"extractor.block_norms.norm2.{i}.weight"], norm.weight)
        assert torch.equal(state[f"extractor.block_norms.norm2.{i}.bias"], norm.bias)
    bound = (6 / (96 + 1 * 96)) ** 0.5  # xavier of (1, M, D): fan in M * D, fan out D
    registers = torch.cat([state[f"extractor.meta_register.tokens.{i}"].flatten() for i in range(4)])
    assert registers.abs().max() <= bound
    assert registers.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    for name in ("stages.3.blocks.0.mlp.0", "stages.3.bridge.proj.0"):
        assert state[f"extractor.side.{name}.weight"].std() == pytest.approx(0.02, rel=0.05)
        assert not state[f"extractor.side.{name}.bias"].any()
    conv = state["extractor.side.stages.3.embed.conv.weight"]
    assert conv.std() == pytest.approx((2 / (9 * 72)) ** 0.5, rel=0.05)
    assert state["head.linear.weight"].std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": 3, "head_input": "cls"}, "head_input='cls': expected one of side, side.cls"),
    ],
)
def test_arguments_that_are_not_possible_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_classifier(small_backbone(), SMALL_HSN, **arguments)


def test_a_class_token_that_the_vit_has_not_is_refused() -> None:
    backbone = small_backbone(class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match=r"class token, which backbone .* does not have"):
        build_classifier(backbone, SMALL_HSN, num_classes=3, head_input="side+cls")
    assert build_classifier(backbone, SMALL_HSN, num_classes=3).predict(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_a_copy_of_a_model_shares_the_frozen_vit_and_nothing_else() -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    copied = copy.deepcopy(model)
    assert copied.backbone is model.backbone
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copied.predict(images), model.predict(images))
    with torch.no_grad():
        copied.head.linear.bias.add_(1)
    assert not torch.equal(copied.predict(images), model.predict(images))


@pytest.mark.parametrize("write", [pickle.dumps, lambda model: torch.save(model, io.BytesIO())])
def test_a_model_is_not_pickled_with_the_vit(write: Any) -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    with pytest.raises(TypeError, match=r"hst\.checkpoint\.save_checkpoint"):
        write(model)
    assert pickle.loads(pickle.dumps(model.state_dict())).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"uint8 \(2, 3, 32, 32\).*Preprocessing\.normalize"),
        (np.zeros((2, 3, 32, 32)), r"of type ndarray: expected a torch tensor \(B, 3, H, W\)"),
        (torch.zeros(3, 32, 32), r"float32 \(3, 32, 32\).*images\[None\]"),
        (torch.zeros(2, 32, 32, 3), r"\(2, 32, 32, 3\).*permute"),
        (torch.zeros(2, 1, 32, 32), r"\(2, 1, 32, 32\): expected normalised images \(B, 3, H, W\)"),
    ],
)
def test_images_of_another_shape_or_type_are_refused(images: Any, message: str) -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    with pytest.raises(ValueError, match=message):
        model.predict(images)
    with pytest.raises(ValueError, match=message):
        forward_tasks([model], [images])
