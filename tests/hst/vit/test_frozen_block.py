"""A frozen block keeps less than timm's and has the same values and gradients, for every supported form of ViT."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hst import plain as plain_ways
from hst.backbone import Backbone
from hst.side.meta_register import BlockNorms, MetaRegister
from hst.vit.frozen_block import FrozenBlock
from tests.hst.small_models import small_backbone


class Outputs:
    """All tapped outputs of a backbone, and the gradients of a fixed function of them."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        plain: bool,
        side: int = 32,
        batch: int = 3,
        num_registers: int = 1,
        taps: tuple[int, ...] = (0, 1, 2, 3),
        drop: bool = False,
        recompute: bool = False,
    ) -> None:
        draws = torch.Generator().manual_seed(7)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draws, dtype=torch.float64)

        norms = BlockNorms(backbone.block_norms())
        registers = MetaRegister(taps, num_registers, backbone.embed_dim).double() if num_registers else None
        self.parameters = dict(nn.ModuleList([norms, *([registers] if registers else [])]).named_parameters())
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.copy_(randn(*parameter.shape))
        images = randn(batch, 3, side, side).requires_grad_()
        scales = (torch.rand(2 * backbone.depth, batch, generator=draws) < 0.7) / 0.7 if drop else None
        with plain_ways.only() if plain else contextlib.nullcontext():
            out = backbone(
                images,
                taps=taps,
                registers=registers,
                norms=norms,
                path_scales=scales,
                class_token=backbone.has_class_token,
                recompute=recompute,
            )
        self.values = [out.tokens[tap] for tap in taps] + [out.class_token]
        loss = sum((value * randn(*value.shape)).sum() for value in self.values if value is not None)
        inputs = [images, *self.parameters.values()]
        self.grads = torch.autograd.grad(loss, inputs, allow_unused=True)


def assert_equal(backbone: Backbone, **case: Any) -> None:
    assert all(backbone._frozen_block(i, torch.float64) is not None for i in range(backbone.depth))
    ours = Outputs(backbone, plain=False, **case)
    theirs = Outputs(backbone, plain=True, **{**case, "recompute": False})
    for one, other in zip([*ours.values, *ours.grads], [*theirs.values, *theirs.grads], strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    num_registers=st.integers(0, 3),
    taps=st.sets(st.integers(0, 3), min_size=1),
    side=st.sampled_from([8, 24, 32, 40]),
    batch=st.integers(1, 3),
    drop=st.booleans(),
    recompute=st.booleans(),
)
def test_values_and_gradients_are_timms(
    num_registers: int, taps: set[int], side: int, batch: int, drop: bool, recompute: bool
) -> None:
    """This includes untapped blocks, which have no registers, and grids of odd sides."""
    case = {"num_registers": num_registers, "taps": tuple(sorted(taps)), "side": side, "batch": batch, "drop": drop}
    assert_equal(small_backbone(dtype=torch.float64), recompute=recompute, **case)


@pytest.mark.parametrize(
    "vit",
    [
        {"init_values": 0.3},
        {"qkv_bias": False},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
        {"pre_norm": True},
        {"no_embed_class": True, "reg_tokens": 1},
        {"act_layer": "gelu_tanh"},
    ],
    ids=lambda vit: " ".join(vit),
)
def test_so_they_are_for_every_form_of_vit(vit: dict[str, Any]) -> None:
    assert_equal(small_backbone(dtype=torch.float64, **vit), drop=True)


@pytest.mark.parametrize("vit", [{"qk_norm": True}, {"scale_attn_norm": True}, {"act_layer": "relu"}], ids=str)
def test_a_block_with_more_to_it_is_left_to_timm(vit: dict[str, Any]) -> None:
    backbone = small_backbone(dtype=torch.float64, **vit)
    assert FrozenBlock.of(backbone.vit.blocks[0], torch.float64) is None
    Outputs(backbone, plain=False)


def test_an_input_without_gradient_gets_none_and_the_registers_theirs() -> None:
    backbone = small_backbone(dtype=torch.float64)
    norms = BlockNorms(backbone.block_norms())
    registers = MetaRegister(range(4), 1, backbone.embed_dim).double()
    nn.init.normal_(registers.tokens["0"])
    out = backbone(torch.zeros(2, 3, 32, 32, dtype=torch.float64), taps=(3,), registers=registers, norms=norms)
    out.tokens[3].square().sum().backward()
    grad = registers.tokens["0"].grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_a_second_backward_pass_says_why_there_is_none() -> None:
    backbone = small_backbone()
    out = backbone(torch.zeros(1, 3, 32, 32).requires_grad_(), taps=(3,)).tokens[3].sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass through a frozen block"):
        out.backward()


def kept_numbers(backbone: Backbone, **options: Any) -> float:
    """What a block saves for backward, in units of the stream (B, N, D), if a bridge reads every block's output."""
    norms, bridge = BlockNorms(backbone.block_norms()), nn.Linear(backbone.embed_dim, 1)
    registers = MetaRegister(range(backbone.depth), 1, backbone.embed_dim)
    own = {p.untyped_storage().data_ptr() for m in (backbone.vit, norms, bridge, registers) for p in m.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        taps = range(backbone.depth)
        out = backbone(torch.randn(8, 3, 64, 64), taps=taps, norms=norms, registers=registers, **options)
        bridged = [bridge(out.tokens[tap]) for tap in taps]
    del out, bridged
    return sum(kept.values()) / (8 * 66 * backbone.embed_dim * 4) / backbone.depth


def test_a_block_keeps_ten_numbers_of_the_streams_width_a_token_and_six_with_recomputation() -> None:
    """The last block's output is kept as well: a quarter for each block of a ViT of four."""
    backbone = small_backbone(img_size=64, embed_dim=64, mlp_ratio=4)
    small = 0.25  # mean and deviation of the norms, the attention's logarithms
    assert 10.25 <= kept_numbers(backbone) < 10.25 + small
    assert 6.25 <= kept_numbers(backbone, recompute=True) < 6.25 + small
    with plain_ways.only():
        assert kept_numbers(backbone) > 11, "plain mode copies the stream for its registers"


def test_in_bfloat16_it_is_as_near_to_float32_as_timms() -> None:
    backbone, images = small_backbone(), torch.randn(2, 3, 32, 32)
    norms, registers = BlockNorms(backbone.block_norms()), MetaRegister(range(4), 1, 24)
    for tokens in registers.parameters():
        nn.init.normal_(tokens)

    def run(plain: bool, low: bool) -> tuple[torch.Tensor, torch.Tensor]:
        way = plain_ways.only() if plain else contextlib.nullcontext()
        with way, torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = backbone(images, taps=(3,), norms=norms, registers=registers).tokens[3]
        (grad,) = torch.autograd.grad(out.float().square().mean(), registers.tokens["1"])
        return out, grad

    exact = run(plain=True, low=False)
    ours, theirs = run(plain=False, low=True), run(plain=True, low=True)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype
        assert (one - true).abs().mean() < 1.3 * (other - true).abs().mean() + 1e-6


def test_a_backward_pass_is_the_same_within_autocast_and_outside() -> None:
    backbone, images = small_backbone(), torch.randn(2, 3, 32, 32)
    norms = BlockNorms(backbone.block_norms())
    grads = []
    for within in (False, True):
        out = backbone(images, taps=(3,), norms=norms, recompute=True).tokens[3].sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            grads.append(torch.autograd.grad(out, list(norms.parameters())))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_registers_of_all_samples_go_with_norms_of_each() -> None:
    """This is the case of several tasks that share their registers."""
    backbone = small_backbone(dtype=torch.float64)
    frozen = FrozenBlock.of(backbone.vit.blocks[0], torch.float64)
    assert frozen is not None
    norms = [nn.LayerNorm(24).double() for _ in range(3)]
    for norm in norms:
        nn.init.normal_(norm.weight)
    registers = torch.randn(1, 2, 24, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 7, 24, dtype=torch.float64)
    each: Any = SimpleNamespace(
        weight=torch.stack([norm.weight for norm in norms]), bias=torch.stack([n.bias for n in norms]), eps=norms[0].eps
    )
    together = frozen.forward(x, (each, each), registers, (None, None), recompute=False)
    apart = torch.cat(
        [frozen.forward(x[i : i + 1], (n, n), registers, (None, None), recompute=False) for i, n in enumerate(norms)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(apart)
    inputs = [registers, *(norm.weight for norm in norms)]
    found = torch.autograd.grad((together * weights).sum(), inputs)
    for one, other in zip(found, torch.autograd.grad((apart * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_weights_in_another_type_are_counted() -> None:
    backbone = small_backbone()
    backbone(torch.zeros(1, 3, 32, 32), taps=())
    assert backbone.copied_bytes == 0
    with torch.autocast("cpu", torch.bfloat16):
        backbone(torch.zeros(1, 3, 32, 32), taps=())
    linears = sum(p.numel() for name, p in backbone.vit.blocks.named_parameters() if "norm" not in name)
    assert backbone.copied_bytes == 2 * linears
