"""Every supported kind of frozen ViT runs as in timm; the others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hst.backbone import Backbone, backbone_identity, check_supported, load_backbone
from hst.config import HSNConfig
from hst.model import build_classifier
from hst.vit.weights import build_skeleton
from tests.hst.small_models import SMALL_HSN, small_backbone, small_vit

KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "average pooling with class token": {"global_pool": "avg"},
    "register tokens": {"reg_tokens": 4},
    "register tokens, position embeddings on patches only (DINOv2)": {
        "reg_tokens": 4, "no_embed_class": True, "init_values": 0.5,
    },
    "register tokens without class token": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "norm before the blocks (CLIP)": {"pre_norm": True, "act_layer": "quick_gelu"},
    "layer scale": {"init_values": 0.5},
    "normalised queries and keys": {"qk_norm": True},
    "no bias in attention": {"qkv_bias": False},
    "no position embedding": {"pos_embed": "none"},
    "patch 16": {"patch_size": 16},
    "patch 14": {"patch_size": 14, "img_size": 28},
    "patch 32": {"patch_size": 32, "img_size": 64},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 2.0, 1.5])
def test_it_computes_what_timm_computes_at_its_own_and_other_sizes(kind: str, scale: float) -> None:
    kwargs = KINDS[kind]
    vit = small_vit(**kwargs)
    timms = small_vit(**kwargs, dynamic_img_size=True)
    timms.eval().load_state_dict(vit.state_dict())
    backbone = Backbone("small", vit, "")
    size = int(kwargs.get("img_size", 32) * scale)
    size -= size % backbone.patch_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = timms.forward_features(images)
        out = backbone(images, taps={1, 3}, class_token=backbone.has_class_token)
    assert sorted(out.tokens) == [1, 3]
    assert out.num_prefix_tokens == timms.num_prefix_tokens
    assert out.grid == (size // backbone.patch_size, size // backbone.patch_size)
    torch.testing.assert_close(vit.norm(out.tokens[3]), expected, rtol=1e-5, atol=1e-5)
    if backbone.has_class_token:
        torch.testing.assert_close(out.class_token, timms.fc_norm(expected)[:, 0], rtol=1e-5, atol=1e-5)
    else:
        assert out.class_token is None


def test_oblong_images_run_as_timm_runs_them() -> None:
    vit = small_vit()
    timms = small_vit(dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 48, 24)
    with torch.no_grad():
        out = Backbone("small", vit, "")(images, taps={3})
        torch.testing.assert_close(vit.norm(out.tokens[3]), timms.forward_features(images), rtol=1e-5, atol=1e-5)
    assert out.grid == (6, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_trains_beside_every_kind(kind: str) -> None:
    backbone = small_backbone(**KINDS[kind])
    size = KINDS[kind].get("img_size", 32)
    head_input = "side+cls" if backbone.has_class_token else "side"
    model = build_classifier(backbone, SMALL_HSN, num_classes=3, head_input=head_input)
    model(torch.randn(2, 3, size, size), torch.tensor([0, 1]))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224.augreg_in21k",
        "vit_base_patch16_224",
        "vit_base_patch8_224",
        "vit_base_patch32_224",
        "vit_small_patch14_dinov2.lvd142m",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "vit_base_patch16_clip_224.openai",
        "deit3_small_patch16_224",
        "vit_medium_patch16_gap_256",
        "vit_base_patch16_224.mae",
        "vit_base_patch16_siglip_224.webli",
        "test_vit3",
        "hst_vit_micro_patch8_64",
    ],
)
def test_these_models_of_timm_are_supported(name: str) -> None:
    check_supported(name)
    with torch.device("meta"):
        backbone = Backbone(name, build_skeleton(name), "")
        model = build_classifier(backbone, HSNConfig(), num_classes=7)
        assert model.predict(torch.empty(2, 3, 112, 112)).shape == (2, 7)
    assert not any(name.startswith(("head", "attn_pool")) for name in backbone.vit.state_dict())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer is not supported"),
        ("eva02_tiny_patch14_224", "Eva is not supported"),
        ("resnet18", "ResNet is not supported"),
        ("vit_small_patch16_18x2_224", r"blocks of type ParallelThingsBlock \(.*\) are not supported"),
        ("vit_base_patch16_rpn_224", r"blocks of type ResPostBlock \(.*\) are not supported"),
        ("aimv2_large_patch14_224", r"blocks of type Block \(RmsNorm, .*\) are not supported"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos is not supported"),
        ("vit_tiny_r_s16_p8_224", "VisionTransformer that makes its tokens by a HybridEmbed is not supported"),
        ("vit_base_mci_224", "VisionTransformer that makes its tokens by a HybridEmbed is not supported"),
        ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled .* is not supported"),
        ("vit_base_patch16_2242", "no such model; close: .*vit_base_patch16_224"),
        ("vit_base_patch16_224.augreg", "has no weights tagged 'augreg'; timm has: .*augreg_in21k"),
    ],
)
def test_others_are_refused_by_name_before_any_file_is_read(name: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"^backbone '{name}': .*{what}"):
        load_backbone(name, "/no/such/file")


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller than one patch of 8"):
        small_backbone()(torch.zeros(1, 3, 32, 7), taps=())


def test_a_blocks_registers_are_put_in_front_for_that_block_alone() -> None:
    backbone = small_backbone()
    vit = backbone.vit
    registers = {1: torch.randn(1, 2, 24), 3: torch.randn(1, 5, 24)}
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x, _ = backbone.embed(images)
        expected = {}
        for i, block in enumerate(vit.blocks):
            own = registers.get(i, torch.zeros(1, 0, 24))
            expected[i] = block(torch.cat([own.expand(2, -1, -1), x], dim=1))
            x = expected[i][:, own.shape[1] :]
        tokens = backbone(images, taps=range(4), registers=registers.get).tokens
    assert [tokens[i].shape[1] for i in range(4)] == [17, 19, 17, 22]
    for i in range(4):
        torch.testing.assert_close(tokens[i], expected[i], rtol=1e-5, atol=1e-5)


def test_given_norms_are_used_in_place_of_its_own() -> None:
    backbone, other = small_backbone(), small_backbone(seed=1)
    images = torch.randn(2, 3, 32, 32)
    expected = small_vit()
    for mine, theirs in zip(expected.blocks, other.vit.blocks, strict=True):
        mine.norm1, mine.norm2 = theirs.norm1, theirs.norm2
    with torch.no_grad():
        tokens = backbone(images, taps={3}, norms=other.block_norms().__getitem__).tokens[3]
        want = expected.forward_features(images)
    torch.testing.assert_close(expected.norm(tokens), want, rtol=1e-5, atol=1e-5)


def test_drop_path_scales_drop_branches_of_single_samples() -> None:
    backbone = small_backbone()
    images = torch.randn(3, 3, 32, 32)
    scales = torch.ones(8, 3)
    scales[:, 0] = 0  # every branch of sample 0
    scales[2:, 2] = 0  # all but block 0's of sample 2
    with torch.no_grad():
        tokens = backbone(images, taps={0, 3}, path_scales=scales).tokens
        plain = backbone(images, taps={0, 3}).tokens
        torch.testing.assert_close(tokens[3][0], backbone.embed(images)[0][0])
    torch.testing.assert_close(tokens[3][1], plain[3][1])
    torch.testing.assert_close(tokens[3][2], plain[0][2])


def test_position_embeddings_of_another_grid_are_resampled_once() -> None:
    backbone = small_backbone()
    first = backbone.pos_embed((6, 5))
    assert backbone.pos_embed((6, 5)) is first
    assert backbone.pos_embed((4, 4)) is backbone.vit.pos_embed
    double = small_backbone().double()
    double.pos_embed((6, 5))
    kept = double.pos_embed((6, 5))
    assert kept is not None
    assert kept.dtype == torch.float64
    double.float()
    again = double.pos_embed((6, 5))
    assert again is not None
    assert again.dtype == torch.float32


def test_the_identity_depends_on_every_name_shape_and_bit() -> None:
    state = small_vit().state_dict()
    identity = backbone_identity(state)
    assert len(identity) == 64
    assert backbone_identity(dict(reversed(state.items()))) == identity
    for name in state:
        changed = {k: v.clone() for k, v in state.items()}
        changed[name].view(-1)[-1:] = torch.nextafter(changed[name].view(-1)[-1:], torch.tensor(9e9))
        assert backbone_identity(changed) != identity, name
    assert backbone_identity(state | {"norm.weight": state["norm.weight"][None]}) != identity
    renamed = {("norm.scale" if k == "norm.weight" else k): v for k, v in state.items()}
    assert backbone_identity(renamed) != identity


def test_the_identity_is_of_the_float32_values_whatever_the_file_stores() -> None:
    state = {k: v.half() for k, v in small_vit().state_dict().items()}
    assert backbone_identity(state) == backbone_identity({k: v.double() for k, v in state.items()})


def test_the_identity_is_the_same_before_and_after_other_image_sizes() -> None:
    backbone = small_backbone()
    backbone(torch.zeros(1, 3, 64, 64), taps=())
    assert backbone_identity(backbone.vit.state_dict()) == backbone.identity


def test_arrays_and_back_is_the_same_backbone() -> None:
    source = small_backbone(img_size=64, embed_dim=128, depth=8, num_heads=4, mlp_ratio=4)
    copy = Backbone.from_arrays("hst_vit_micro_patch8_64", source.arrays(), source.identity)
    assert backbone_identity(copy.vit.state_dict()) == source.identity
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(copy(images, taps={7}).tokens[7], source(images, taps={7}).tokens[7], rtol=0, atol=0)
