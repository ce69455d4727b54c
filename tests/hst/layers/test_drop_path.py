"""Stochastic depth has the released code's rates and draws for the global batch."""

from __future__ import annotations

import pytest
import torch

from hst.layers.drop_path import add_branch, draw_path_scales, path_rates
from hst.model import build_classifier
from hst.randomness import generator
from tests.hst.small_models import SMALL_HSN, small_backbone


def test_each_network_has_its_own_ramp_and_a_block_two_branches() -> None:
    rates = path_rates(0.3, 4, 3)
    expected = torch.tensor([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0, 0, 0.15, 0.15, 0.3, 0.3], dtype=torch.float64)
    torch.testing.assert_close(rates, expected)
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    torch.testing.assert_close(model.path_rates(0.3), path_rates(0.3, 4, 4))


def test_scales_are_zero_or_keep_the_expectation() -> None:
    rates = torch.tensor([0.0, 0.25, 0.9], dtype=torch.float64)
    scales = draw_path_scales(rates, 20_000, generator(0, "test"))
    assert scales is not None
    assert scales.dtype == torch.float32
    assert (scales[0] == 1).all()
    for row, rate in zip(scales[1:], (0.25, 0.9), strict=True):
        values = row.unique().tolist()
        assert values == [0, pytest.approx(1 / (1 - rate))]
        assert (row == 0).double().mean().item() == pytest.approx(rate, abs=0.02)


def test_no_rate_draws_nothing() -> None:
    assert draw_path_scales(path_rates(0.0, 4, 4), 8, generator(0)) is None


@pytest.mark.parametrize("drop_path", [-0.1, 1.0])
def test_a_rate_out_of_range_is_refused(drop_path: float) -> None:
    with pytest.raises(ValueError, match=f"drop_path={drop_path}"):
        path_rates(drop_path, 4, 4)


def test_a_branch_is_scaled_by_sample() -> None:
    x, branch = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(add_branch(x, branch, None), x + branch)
    out = add_branch(x, branch, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(out, torch.stack([x[0], x[1] + branch[1], x[2] + 2 * branch[2]]))


def test_a_batch_split_over_workers_drops_the_same_branches() -> None:
    """Each worker gets its columns. In evaluation mode batch statistics are fixed, so samples are independent."""
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3).eval()
    images = torch.randn(6, 3, 32, 32)
    scales = draw_path_scales(model.path_rates(0.5), 6, generator(0, "split"))
    assert scales is not None
    whole = model.outputs(images, scales)
    parts = [model.outputs(images[a:b], scales[:, a:b]) for a, b in ((0, 2), (2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, model.outputs(images, None), atol=1e-4)
