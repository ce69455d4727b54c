"""The shapes of the pretraining are a function of the seed, all different, and all in one standard position."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.pretraining.formulas import NUM_ANGLES, NUM_CONTOURS, NUM_FORMULAS, Formulas, build_formulas


@pytest.fixture(scope="module")
def formulas() -> Formulas:
    return build_formulas(0)


def test_the_shapes_are_a_function_of_the_seed(formulas: Formulas) -> None:
    again, other = build_formulas(0), build_formulas(1)
    assert torch.equal(again.radii, formulas.radii)
    assert torch.equal(again.points, formulas.points)
    assert not torch.equal(other.radii, formulas.radii)
    assert not torch.equal(other.points, formulas.points)


def test_no_two_formulas_draw_the_same(formulas: Formulas) -> None:
    for shapes in (formulas.radii, formulas.points.flatten(1)):
        apart = torch.cdist(shapes, shapes, p=math.inf) + torch.eye(len(shapes))
        assert apart.min() > 0.03
    assert len(formulas.radii) + len(formulas.points) == NUM_FORMULAS


def test_the_tip_of_a_contour_is_at_angle_0_and_nothing_else_is_as_far(formulas: Formulas) -> None:
    assert formulas.radii.min() > 0
    angles = torch.arange(NUM_ANGLES) * (2 * math.pi / NUM_ANGLES)
    away = torch.cos(angles) < math.cos(math.radians(41))
    assert formulas.radii[:, 0] == pytest.approx(torch.ones(NUM_CONTOURS), abs=0.01)
    assert formulas.radii[:, away].max() < 0.93


def test_the_tip_of_a_stroke_is_at_1_0_and_nothing_else_is_as_far(formulas: Formulas) -> None:
    distance = formulas.points.norm(dim=2)
    tips = formulas.points[torch.arange(len(distance)), distance.argmax(dim=1)]
    assert torch.allclose(tips, torch.tensor([1.0, 0.0]).expand_as(tips), atol=1e-5)
    away = formulas.points[:, :, 0] / distance < math.cos(math.radians(41))
    assert distance[away].max() < 0.93


def test_a_strokes_points_are_even_along_it(formulas: Formulas) -> None:
    """Gaps would show as beads. Only where a path turns sharply are two points closer than elsewhere."""
    steps = formulas.points.diff(dim=1).norm(dim=2)
    assert (steps.amax(dim=1) < 1.1 * steps.median(dim=1).values).all()
