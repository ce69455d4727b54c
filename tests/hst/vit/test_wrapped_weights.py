"""Weights in the wrappers of other programs give the same backbone; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from hst.backbone import load_backbone
from hst.vit.weights import PROJECT_VITS
from tests.hst.vit.test_weights import MICRO, NAME, micro, same


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, other: {"teacher": state},
        lambda state, other: {"model": under("module.", state), "optimizer": {"state": {0: {"step": 3}}}},
        lambda state, other: under("backbone.", state) | {"fc.weight": torch.zeros(3)},
        lambda state, other: {"state_dict": under("model.visual.trunk.", state) | {"logit_scale": torch.zeros(())}},
        lambda state, other: {"student": under("backbone.", other), "teacher": under("backbone.", state)},
        lambda state, other: {"model": other, "model_ema": state},
        lambda state, other: under("cinema.", state),
    ],
    ids=["teacher", "module", "backbone", "visual.trunk", "student and teacher", "ema", "a word with ema in it"],
)
def test_wrappers_and_prefixes_change_nothing(wrap: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    state, other = (micro(seed=seed).state_dict() for seed in (0, 1))
    torch.save(wrap(state, other), tmp_path / "vit.pth")
    same(NAME, tmp_path / "vit.pth", state)


CLIPS_NAMES = {
    "patch_embed.proj": "conv1", "cls_token": "class_embedding", "pos_embed": "positional_embedding",
    "norm_pre": "ln_pre", "blocks": "transformer.resblocks", "norm1": "ln_1", "norm2": "ln_2", "norm.": "ln_post.",
    "qkv.": "in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def as_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ViT's weights as in OpenCLIP's checkpoints."""
    found = {}
    for name, value in state.items():
        for timms, clips in CLIPS_NAMES.items():
            name = name.replace(timms, clips)
        found[name] = (
            value[0, 0] if name == "class_embedding" else value[0] if name == "positional_embedding" else value
        )
    return under("visual.", found) | {"logit_scale": torch.zeros(()), "positional_embedding": torch.zeros(77, 128)}


@pytest.mark.parametrize(
    "wrap",
    [lambda clip: clip, lambda clip: {"state_dict": under("module.", clip), "epoch": 3}, lambda clip: {"model": clip}],
    ids=["plain", "a training's checkpoint", "model"],
)
def test_clips_names_are_read_in_every_wrapper(
    wrap: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = micro(pre_norm=True)
    monkeypatch.setitem(PROJECT_VITS, "micro_clip", {**MICRO, "patch_size": 8, "pre_norm": True})
    torch.save(wrap(as_clip(vit.state_dict())), tmp_path / "clip.pt")
    same("micro_clip", tmp_path / "clip.pt", vit.state_dict())


def test_the_layer_scale_of_deit_3s_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = micro(init_values=0.5)
    monkeypatch.setitem(PROJECT_VITS, "micro_deit3", {**MICRO, "patch_size": 8, "init_values": 0.5})
    state = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for name, v in vit.state_dict().items()
    }
    assert "blocks.3.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit3.pth")
    same("micro_deit3", tmp_path / "deit3.pth", vit.state_dict())


def test_a_vit_with_attention_pooling_is_read_without_it(tmp_path: Path) -> None:
    vit = timm.create_model("test_vit3", num_classes=10)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    assert vit.attn_pool is not None
    expected = {k: v for k, v in vit.state_dict().items() if not k.startswith(("head.", "attn_pool."))}
    same("test_vit3", tmp_path / "vit.pth", expected)
    assert load_backbone("test_vit3", "random").vit.state_dict().keys() == expected.keys()


def test_two_vits_in_a_file_are_named(tmp_path: Path) -> None:
    state = micro().state_dict()
    torch.save(under("left.", state) | under("right.", state), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"several ViTs, whose names begin with 'left\.', 'right\.'"):
        load_backbone(NAME, tmp_path / "vit.pth")


def test_a_prefix_under_which_nothing_fits_is_named(tmp_path: Path) -> None:
    torch.save(under("encoder.layers.", {"0.weight": torch.zeros(3), "1.weight": torch.zeros(3)}), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"cls_token is missing.*all its names begin with 'encoder'"):
        load_backbone(NAME, tmp_path / "x.pth")


def test_missing_and_unknown_names_are_both_shown(tmp_path: Path) -> None:
    state = micro().state_dict()
    del state["cls_token"], state["norm.bias"], state["norm.weight"]
    torch.save({**state, "blocks.0.gate": torch.zeros(3), "norm.bias": torch.zeros(3)}, tmp_path / "x.pth")
    shown = r"cls_token is missing; norm\.weight is missing; blocks\.0\.gate is unknown; norm\.bias is \(3,\), expected"
    with pytest.raises(ValueError, match=shown):
        load_backbone(NAME, tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("value", "name"),
    [(float("nan"), "blocks.3.attn.qkv.bias"), (float("inf"), "pos_embed"), (-float("inf"), "norm.bias")],
)
def test_weights_that_are_not_finite_are_refused(value: float, name: str, tmp_path: Path) -> None:
    state = micro().state_dict()
    state[name].view(-1)[1] = value
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=f"1 of .* tensors hold NaN or infinite values, {name} for one"):
        load_backbone(NAME, tmp_path / "vit.safetensors")
