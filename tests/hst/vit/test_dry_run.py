"""The dry run finds what HST would compute otherwise than timm, and says which part of the ViT it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hst.backbone import Backbone
from hst.vit.dry_run import check_runs_as_in_timm
from hst.vit.weights import PROJECT_VITS

NAME = "dry_run_vit"
ALL_PARTS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "reg_tokens": 2, "pre_norm": True,
    "init_values": 1e-6, "qk_norm": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def a_vit_of_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROJECT_VITS, NAME, ALL_PARTS)


def beside_changed(change: Callable[[Any], Any]) -> Callable[[nn.Module], Backbone]:
    """A backbone whose ViT is not quite timm's."""

    def beside(vit: nn.Module) -> Backbone:
        vit = copy.deepcopy(vit)
        change(vit)
        return Backbone(NAME, vit, "")

    return beside


def zero(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.zero_()


TOKENS: dict[str, Callable[[Any], Any]] = {
    "class token": lambda vit: zero(vit.cls_token),
    "register tokens": lambda vit: zero(vit.reg_token),
    "norm before the blocks": lambda vit: setattr(vit, "norm_pre", nn.Identity()),
    "number of patches": lambda vit: setattr(vit.patch_embed.proj, "stride", (4, 4)),
}
BLOCKS: dict[str, Callable[[Any], Any]] = {
    "layer scale, though it is trained to almost nothing": lambda vit: zero(vit.blocks[0].ls1.gamma),
    "normalised keys": lambda vit: setattr(vit.blocks[0].attn, "k_norm", nn.Identity()),
    "bias": lambda vit: zero(vit.blocks[0].mlp.fc2.bias),
    "eps of a norm": lambda vit: setattr(vit.blocks[0].norm2, "eps", 0.1),
    "norm without bias": lambda vit: setattr(vit.blocks[0].norm1, "bias", None),
}


def test_the_vit_as_it_is_passes() -> None:
    check_runs_as_in_timm(NAME, beside_changed(lambda vit: None))


@pytest.mark.parametrize("part", TOKENS)
def test_other_tokens_are_noticed(part: str) -> None:
    with pytest.raises(ValueError, match="'dry_run_vit': a VisionTransformer that makes its tokens by a PatchEmbed is"):
        check_runs_as_in_timm(NAME, beside_changed(TOKENS[part]))


@pytest.mark.parametrize("part", BLOCKS)
def test_other_blocks_are_noticed(part: str) -> None:
    with pytest.raises(ValueError, match=r"'dry_run_vit': blocks of type Block \(LayerNorm, Attention, LayerScale"):
        check_runs_as_in_timm(NAME, beside_changed(BLOCKS[part]))


def test_it_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    check_runs_as_in_timm(NAME, lambda vit: Backbone(NAME, vit, ""))
    assert torch.equal(torch.get_rng_state(), state)
