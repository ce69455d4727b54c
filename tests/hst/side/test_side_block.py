"""Compares the folded cross-attention and the Side block with plain equations."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F

from hst.side.side_block import MetaCrossAttention, SideBlock

M = TypeVar("M", bound=torch.nn.Module)


def randomised(module: M) -> M:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    module.double()
    return module


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 65])
@pytest.mark.parametrize(("width", "num_heads"), [(8, 1), (8, 2), (72, 12), (8, 8)])
def test_folded_attention_equals_scaled_dot_product_attention_with_its_gradients(
    num_tokens: int, width: int, num_heads: int
) -> None:
    attention = randomised(MetaCrossAttention(width, num_heads))
    x = torch.randn(3, 7, width, dtype=torch.float64, requires_grad=True)
    meta = torch.randn(3, num_tokens, width, dtype=torch.float64, requires_grad=True)
    inputs = [x, meta, *attention.parameters()]

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    plain = F.scaled_dot_product_attention(heads(attention.q(x)), heads(attention.k(meta)), heads(attention.v(meta)))
    expected = attention.proj(plain.transpose(1, 2).flatten(2))
    folded = attention(x, meta)
    torch.testing.assert_close(folded, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad((folded * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_block_is_attention_then_injection_then_mlp() -> None:
    block = randomised(SideBlock(8, 2, 4.0, cross_attention=True, inject=True))
    x, patches = torch.randn(2, 2, 3, 5, 8, dtype=torch.float64)
    meta = torch.randn(2, 2, 8, dtype=torch.float64)
    expected = x + block.attn(block.norm1(x).flatten(1, 2), meta).view_as(x)  # eq. 3
    expected = expected + patches  # eq. 4
    expected = expected + block.mlp(block.norm2(expected))  # eq. 5
    torch.testing.assert_close(block(x, meta, patches, None), expected)
    assert block.mlp[0].weight.shape == (32, 8)


def test_without_injection_or_attention_those_steps_are_left_out() -> None:
    x, patches = torch.randn(2, 2, 3, 5, 8, dtype=torch.float64)
    meta = torch.randn(2, 2, 8, dtype=torch.float64)
    block = randomised(SideBlock(8, 2, 4.0, cross_attention=True, inject=False))
    torch.testing.assert_close(block(x, meta, patches, None), block(x, meta, patches * 2, None))
    block = randomised(SideBlock(8, 2, 4.0, cross_attention=False, inject=True))
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"norm2", "mlp"}
    injected = x + patches
    torch.testing.assert_close(block(x, None, patches, None), injected + block.mlp(block.norm2(injected)))


def test_drop_path_scales_attention_and_mlp_of_each_sample_but_never_the_injection() -> None:
    block = randomised(SideBlock(8, 2, 4.0, cross_attention=True, inject=True))
    x, patches = torch.randn(2, 3, 3, 5, 8, dtype=torch.float64)
    meta = torch.randn(3, 2, 8, dtype=torch.float64)
    full = block(x, meta, patches, None)
    out = block(x, meta, patches, torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]))
    torch.testing.assert_close(out[0], (x + patches)[0])
    torch.testing.assert_close(out[1], full[1])
    injected = (x + patches)[2]
    torch.testing.assert_close(out[2], injected + 2 * block.mlp(block.norm2(injected)))
