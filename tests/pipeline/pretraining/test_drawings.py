"""The pictures of the pretraining are functions of their key, and their targets agree with what can be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.pretraining.drawings import GRID, IMAGE_SIZE, NUM_DIRECTIONS, Drawings, _coverage, _Shapes, draw_batch
from pipeline.pretraining.formulas import NUM_ANGLES, NUM_CONTOURS, Formulas, build_formulas

MIDDLES = (torch.arange(GRID) + 0.5) * (IMAGE_SIZE / GRID)
PATCH_MIDDLES = torch.stack(torch.meshgrid(MIDDLES, MIDDLES, indexing="xy"), dim=-1).view(-1, 2)


@pytest.fixture(scope="module")
def formulas() -> Formulas:
    return build_formulas(0)


@pytest.fixture(scope="module")
def drawings(formulas: Formulas) -> Drawings:
    return draw_batch(formulas, 96, 0, "test", 0)


def shapes(formula: list[int], radius: float = 24.0) -> _Shapes:
    """One shape per picture, a little off the middle; each is turned further than the one before."""
    count = len(formula)
    return _Shapes(
        picture=torch.arange(count),
        slot=torch.zeros(count, dtype=torch.int64),
        formula=torch.tensor(formula),
        centre=torch.tensor([[34.0, 29.5]]).expand(count, -1),
        radius=torch.full((count,), radius),
        angle=torch.arange(count) * 0.7,
        outlined=torch.zeros(count, dtype=torch.bool),
        width=torch.full((count,), 2.0),
    )


def test_a_batch_is_a_function_of_its_key(formulas: Formulas, drawings: Drawings) -> None:
    torch.manual_seed(7)
    again = draw_batch(formulas, 96, 0, "test", 0)
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(drawings).items())
    for key in (("test", 1), ("step", 0)):
        assert not torch.equal(draw_batch(formulas, 96, 0, *key).images, drawings.images)
    assert not torch.equal(draw_batch(formulas, 96, 1, "test", 0).images, drawings.images)


def test_the_pixels_are_normalised(drawings: Drawings) -> None:
    assert drawings.images.shape == (96, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert drawings.images.min() >= -1
    assert drawings.images.max() <= 1


def test_a_contour_is_drawn_as_a_polygon_of_its_points_is(formulas: Formulas) -> None:
    several = shapes(list(range(0, NUM_CONTOURS, 16)))
    covered = _coverage(formulas, several)
    for number, formula in enumerate(several.formula):
        angles = torch.arange(NUM_ANGLES) * (2 * math.pi / NUM_ANGLES) + several.angle[number]
        radii = formulas.radii[formula] * several.radius[number]
        corners = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=1) + several.centre[number]
        canvas = Image.new("L", (8 * IMAGE_SIZE, 8 * IMAGE_SIZE))
        ImageDraw.Draw(canvas).polygon([(8 * x, 8 * y) for x, y in corners.tolist()], fill=255)
        expected = torch.from_numpy(np.array(canvas.reduce(8))) / 255
        assert (covered[number] - expected).abs().mean() < 0.01


def test_a_stroke_covers_what_is_within_its_width_of_its_path(formulas: Formulas) -> None:
    several = shapes(list(range(NUM_CONTOURS, 2 * NUM_CONTOURS, 16)))
    covered = _coverage(formulas, several)
    at = torch.arange(IMAGE_SIZE) + 0.5
    for number, formula in enumerate(several.formula):
        angle, size = several.angle[number], several.radius[number] - several.width[number]
        x, y = formulas.points[formula - NUM_CONTOURS].T * size
        path_x = x * angle.cos() - y * angle.sin() + several.centre[number, 0]
        path_y = x * angle.sin() + y * angle.cos() + several.centre[number, 1]
        away = torch.hypot(at[None, :, None] - path_x, at[:, None, None] - path_y).amin(dim=2)
        assert (covered[number][away < 1.4] == 1).all()
        assert (covered[number][away > 2.6] == 0).all()


def test_the_farthest_of_a_shape_is_where_it_is_said_to_point(formulas: Formulas) -> None:
    several = shapes([0, 70, 140, 210, 300, 370, 440, 510])
    at = torch.arange(IMAGE_SIZE) + 0.5
    for number, cover in enumerate(_coverage(formulas, several)):
        away = torch.hypot(at[None, :] - several.centre[number, 0], at[:, None] - several.centre[number, 1])
        row, column = divmod(int((away * (cover > 0.5)).argmax()), IMAGE_SIZE)
        seen = math.atan2(at[row] - several.centre[number, 1], at[column] - several.centre[number, 0])
        assert math.cos(seen - float(several.angle[number])) > math.cos(math.radians(20))


def test_half_of_the_pictures_show_one_shape_and_the_others_up_to_seven(formulas: Formulas) -> None:
    many = draw_batch(formulas, 400, 0, "test", "counts")
    alone = many.formula >= 0
    assert 0.4 < alone.float().mean() < 0.6
    counts = many.centres.sum(dim=1)
    assert counts[alone] == pytest.approx(torch.ones(int(alone.sum())), abs=1e-5)
    assert counts[~alone].max() > 6
    assert counts[~alone].min() > 1


def test_every_patch_of_a_shape_alone_tells_the_same_of_it(drawings: Drawings) -> None:
    for number in torch.nonzero(drawings.formula >= 0).flatten().tolist():
        shown = drawings.shown[number] > 0
        told = PATCH_MIDDLES[shown] + 16 * drawings.poses[number, shown, :2]
        assert torch.allclose(told, told[:1].expand_as(told), atol=1e-4)
        turns = drawings.poses[number, shown, 3:]
        assert torch.allclose(turns, drawings.turn[number].expand_as(turns))
        assert torch.allclose(drawings.reaches[number, shown], drawings.reach[number])
        spread = (drawings.centres[number, :, None] * PATCH_MIDDLES).sum(dim=0)  # weighted by the split
        assert torch.allclose(spread, told[0], atol=1e-3)


def test_a_patch_is_said_to_show_a_shape_where_one_differs_from_flat_ground(formulas: Formulas) -> None:
    """Checked in pictures with ground of one colour: the corner has this colour, and the top row differs nowhere."""
    many = draw_batch(formulas, 200, 0, "test", "flat")
    corner = many.images[:, :, :1, :1]
    differs = ((many.images - corner).abs().amax(dim=1) > 0.2).float()
    share = torch.nn.functional.avg_pool2d(differs, IMAGE_SIZE // GRID).flatten(1)
    flat = (many.images[:, :, 0] - corner[:, :, 0]).abs().amax(dim=(1, 2)) < 0.02
    assert flat.sum() > 40
    agrees = ((share[flat] > 0.15) == (many.shown[flat] > 0)).float().mean()
    assert agrees > 0.95


def test_a_shape_reaches_to_1_where_it_points_and_nowhere_farther(drawings: Drawings) -> None:
    pointed = torch.atan2(drawings.turn[:, 1], drawings.turn[:, 0])
    nearest = (pointed / (2 * math.pi / NUM_DIRECTIONS)).round().long() % NUM_DIRECTIONS
    assert drawings.reach.gather(1, nearest[:, None]).min() > math.cos(math.pi / NUM_DIRECTIONS) ** 8 - 0.02
    assert drawings.reach.max() <= 1.001


def test_what_a_patch_without_a_shape_is_to_tell_is_nothing(drawings: Drawings) -> None:
    for told in (drawings.poses, drawings.reaches):
        assert (told[drawings.shown == 0] == 0).all()
