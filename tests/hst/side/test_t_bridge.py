"""The bridge projects before it interpolates, the released code the other way round. Both give the same result."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hst.side.side_block import resized
from hst.side.t_bridge import TBridge


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((14, 14), (56, 56)),
        ((14, 14), (7, 7)),
        ((16, 16), (56, 56)),  # patch 14 at 224 px
        ((16, 16), (7, 7)),
        ((7, 7), (28, 28)),
        ((5, 7), (20, 27)),
        ((28, 28), (7, 7)),  # patch 8: down by 4
        ((3, 3), (3, 3)),
        ((1, 1), (4, 4)),
    ],
)
@pytest.mark.parametrize("num_registers", [0, 1, 3])
def test_projecting_first_equals_interpolating_first_with_its_gradients(
    grid: tuple[int, int], size: tuple[int, int], num_registers: int
) -> None:
    bridge = TBridge(24, 8, num_blocks=2, num_registers=num_registers, shared=True).double()
    tokens = torch.randn(2, num_registers + 2 + grid[0] * grid[1], 24, dtype=torch.float64, requires_grad=True)
    projected = bridge.project(tokens, 1)
    patches, registers = bridge(projected, 1, num_prefix_tokens=2, grid=grid)
    patches = resized(patches, size)
    global_token = bridge.global_token(projected, 2, grid, size)

    nchw = tokens[:, num_registers + 2 :].transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(nchw, size, mode="bilinear", align_corners=False)
    weight, bias = bridge.get_parameter("proj.0.weight"), bridge.get_parameter("proj.0.bias")
    expected = F.linear(maps.permute(0, 2, 3, 1), weight, bias)
    assert patches.shape == (2, *size, 8)
    torch.testing.assert_close(patches, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(global_token[:, 0], expected.mean((1, 2)), rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(expected)
    inputs = [tokens, weight, bias]
    for got, want in zip(
        torch.autograd.grad((patches * weights).sum(), inputs, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), inputs, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)

    if num_registers:
        projected = F.linear(tokens[:, :num_registers], weight, bias)
        torch.testing.assert_close(registers, F.layer_norm(projected, (8,), eps=1e-5))
    else:
        assert registers is None


def test_prefix_tokens_never_reach_the_side_network() -> None:
    bridge = TBridge(24, 8, num_blocks=1, num_registers=1, shared=True)
    tokens = torch.randn(1, 1 + 5 + 9, 24)
    changed = tokens.clone()
    changed[:, 1:6] += 1
    for a, b in zip(
        bridge(bridge.project(tokens, 0), 0, num_prefix_tokens=5, grid=(3, 3)),
        bridge(bridge.project(changed, 0), 0, num_prefix_tokens=5, grid=(3, 3)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_block_has_its_own_norm_and_only_an_unshared_bridge_its_own_projection() -> None:
    shared = TBridge(24, 8, num_blocks=3, num_registers=1, shared=True)
    own = TBridge(24, 8, num_blocks=3, num_registers=1, shared=False)
    assert [len(shared.proj), len(own.proj), len(shared.register_norm)] == [1, 3, 3]
    tokens = torch.randn(1, 1 + 1 + 4, 24)
    first, second = (own.project(tokens, b) for b in (0, 2))
    assert not torch.allclose(first, second)


def test_what_was_made_in_inference_mode_serves_in_training() -> None:
    bridge = TBridge(24, 8, num_blocks=1, num_registers=0, shared=True)
    with torch.inference_mode():
        bridge.global_token(bridge.project(torch.randn(1, 9, 24), 0), 0, (3, 3), (7, 7))
    bridge.global_token(bridge.project(torch.randn(1, 9, 24), 0), 0, (3, 3), (7, 7)).sum().backward()
    assert bridge.get_parameter("proj.0.weight").grad is not None
