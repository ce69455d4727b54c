"""The pictures of the pretraining, drawn when they are needed: a batch is a function of (seed, purpose, step).

Half of the pictures show one shape of any size, the other half two to seven small shapes. Shapes are filled, outlined
or strokes, on plain or wavy ground; some pictures look as if a camera of 8 to 32 pixels a side had taken them. The
targets are the parameters that a picture was drawn from. This module knows nothing about the demo's tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hst.randomness import generator
from pipeline.pretraining.formulas import NUM_ANGLES, NUM_CONTOURS, NUM_FORMULAS, Formulas

IMAGE_SIZE = 64
GRID = 8
"""Number of patches along a side; a patch has 8 x 8 pixels."""
MAX_SHAPES = 7
NUM_DIRECTIONS = 16
"""Number of directions in which a shape's reach is predicted, from the x axis towards the y axis, which points down."""

_PATCH = IMAGE_SIZE // GRID
_SIDES = (IMAGE_SIZE, 8, 16, 32)  # resolutions that a picture may be drawn at, in pixels a side
_PLACES_TRIED = 8  # a small shape takes the place with the most room
_OWNED = 0.15  # a patch shows a shape if the shape owns at least this share of its pixels


@dataclass(frozen=True)
class Drawings:
    """B pictures and the parameters that they were drawn from. G is GRID."""

    images: torch.Tensor
    """Pixels (B, 3, 64, 64), normalised with mean = std = 0.5."""
    formula: torch.Tensor
    """int64 (B,): the formula of the only shape; -1 if there are several."""
    turn: torch.Tensor
    """(B, 2): cosine and sine of the direction in which its tip points."""
    reach: torch.Tensor
    """(B, NUM_DIRECTIONS): how far the turned shape reaches in each direction; its tip reaches to 1."""
    centres: torch.Tensor
    """(B, G * G): the shapes' centres, each split between its four nearest patches; at most 1."""
    shown: torch.Tensor
    """(B, G * G): 1 where a patch shows a shape, else 0."""
    poses: torch.Tensor
    """(B, G * G, 5): the pose of the shape that a patch shows most of; 0 where it shows none. The values are the x and
    y of the shape's centre relative to the patch's, in units of 16 pixels; the logarithm of its radius in units of 10
    pixels; and the cosine and sine of its turn."""
    reaches: torch.Tensor
    """(B, G * G, NUM_DIRECTIONS): how far that shape reaches. 0 where it shows none."""


@dataclass(frozen=True)
class _Shapes:
    """The M shapes of all pictures of a batch, one after another."""

    picture: torch.Tensor  # int64 (M,)
    slot: torch.Tensor  # int64 (M,): 0 for a picture's lowest shape; higher ones cover lower ones
    formula: torch.Tensor  # int64 (M,)
    centre: torch.Tensor  # (M, 2), x and y in pixels
    radius: torch.Tensor  # (M,), in pixels
    angle: torch.Tensor  # (M,), in radians
    outlined: torch.Tensor  # bool (M,): whether a contour is empty inside
    width: torch.Tensor  # (M,): half the width of a line, in pixels


def draw_batch(
    formulas: Formulas, batch_size: int, seed: int, *key: str | int, device: torch.device | None = None
) -> Drawings:
    """Draw ``batch_size`` pictures on ``device``; the random numbers are keyed by ("pretraining", *key), on the CPU."""
    random = generator(seed, "pretraining", *key)
    device = device or torch.device("cpu")
    shapes = _draw_shapes(batch_size, random)
    alone = torch.bincount(shapes.picture, minlength=batch_size) == 1
    ground, inks = _draw_colours(shapes.picture, batch_size, random)
    ripples = [_ripples(_draw_waves(len(colours), random).to(device)) for colours in (ground, inks)]
    roomy = alone & (shapes.radius[shapes.slot == 0] > 18)
    sides = _draw_sides(roomy, random).to(device)
    grain = _draw_grain(batch_size, random).to(device)

    shapes = _Shapes(**{name: value.to(device) for name, value in vars(shapes).items()})
    cover = _coverage(formulas, shapes)
    images, inks = (
        colours.to(device)[:, :, None, None] + added[:, None]
        for colours, added in zip((ground, inks), ripples, strict=True)
    )
    owner = torch.full((batch_size, IMAGE_SIZE, IMAGE_SIZE), MAX_SHAPES, device=device)
    for slot in range(MAX_SHAPES):  # from the lowest shape to the highest
        chosen = torch.nonzero(shapes.slot == slot).squeeze(1)
        where, part = shapes.picture[chosen], cover[chosen]
        images[where] += (inks[chosen] - images[where]) * part[:, None]
        owner[where] = torch.where(part > 0.5, slot, owner[where])
    for side in _SIDES[1:]:
        chosen = torch.nonzero(sides == side).squeeze(1)
        if len(chosen):
            small = F.interpolate(images[chosen], size=side, mode="area")
            images[chosen] = F.interpolate(small, size=IMAGE_SIZE, mode="bicubic")
    images = ((images + grain).clamp(0, 1) - 0.5) / 0.5
    return _with_targets(formulas, images, owner, shapes, alone.to(device))


def _draw_shapes(batch_size: int, random: torch.Generator) -> _Shapes:
    alone = torch.rand(batch_size, generator=random) < 0.5
    counts = torch.where(alone, 1, torch.randint(2, MAX_SHAPES + 1, (batch_size,), generator=random))
    radii = 4.5 + 6 * torch.rand(batch_size, MAX_SHAPES, generator=random)
    radii[:, 0] = torch.where(alone, 5 + 25 * torch.rand(batch_size, generator=random), radii[:, 0])
    free = torch.rand(batch_size, _PLACES_TRIED, MAX_SHAPES, 2, generator=random)
    margin = (0.9 * radii).view(batch_size, 1, MAX_SHAPES, 1)
    tries = margin + free * (IMAGE_SIZE - 2 * margin)
    centres = tries[:, 0].clone()
    for slot in range(1, MAX_SHAPES):
        apart = torch.cdist(tries[:, :, slot], centres[:, :slot]) - radii[:, None, :slot]  # (B, tries, slots so far)
        best = apart.amin(dim=2).argmax(dim=1)
        centres[:, slot] = tries[torch.arange(batch_size), best, slot]
    picture, slots = torch.nonzero(torch.arange(MAX_SHAPES) < counts[:, None], as_tuple=True)
    count, radius = len(picture), radii[picture, slots]
    return _Shapes(
        picture=picture,
        slot=slots,
        formula=torch.randint(NUM_FORMULAS, (count,), generator=random),
        centre=centres[picture, slots],
        radius=radius,
        angle=2 * math.pi * torch.rand(count, generator=random),
        outlined=torch.rand(count, generator=random) < 0.3,
        width=(radius * (0.06 + 0.16 * torch.rand(count, generator=random))).clamp(min=1.0),
    )


def _draw_colours(picture: torch.Tensor, batch_size: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """RGB in [0, 1] of every picture's ground (B, 3) and of every shape (M, 3); a shape differs from its ground."""
    kind = torch.rand(batch_size, 1, generator=random)
    colour, grey = torch.rand(batch_size, 3, generator=random), torch.rand(batch_size, 1, generator=random)
    ground = torch.where(kind < 0.3, 0.0, torch.where(kind < 0.6, grey.expand(-1, 3), colour))
    bright = torch.rand(batch_size, 1, generator=random) < 0.4  # all shapes of the picture are near white
    inks = torch.rand(len(picture), 3, generator=random)
    inks = torch.where(bright[picture], 0.85 + 0.15 * inks[:, :1], inks)
    below = ground[picture]
    alike = (inks - below).abs().amax(dim=1, keepdim=True) < 0.3
    return ground, torch.where(alike, (below + 0.5) % 1, inks)


def _draw_sides(roomy: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Pixels a side that each picture is drawn at, int64 (B,): fewer than all in half of those with one large shape."""
    sides = torch.tensor(_SIDES)[torch.randint(1, len(_SIDES), roomy.shape, generator=random)]
    return torch.where(roomy & (torch.rand(roomy.shape, generator=random) < 0.5), sides, IMAGE_SIZE)


def _draw_grain(batch_size: int, random: torch.Generator) -> torch.Tensor:
    """Noise (B, 3, 64, 64) for three pictures in ten, with a standard deviation of up to 0.06."""
    strength = 0.2 * (torch.rand(batch_size, 1, 1, 1, generator=random) - 0.7).clamp(min=0)
    return strength * torch.randn(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=random)


def _draw_waves(count: int, random: torch.Generator) -> torch.Tensor:
    """Draw (count, 4) wave parameters: waves per picture in x and in y, phase, height. Three in four have height 0."""
    draws = torch.rand(count, 4, generator=random)
    height = torch.where(torch.rand(count, generator=random) < 0.25, 0.25 * draws[:, 3], 0.0)
    return torch.stack([16 * draws[:, 0] - 8, 16 * draws[:, 1] - 8, 2 * math.pi * draws[:, 2], height], dim=1)


def _ripples(waves: torch.Tensor) -> torch.Tensor:
    """Turn wave parameters (count, 4) into what they add to every pixel (count, 64, 64)."""
    at = (torch.arange(IMAGE_SIZE, device=waves.device) + 0.5) / IMAGE_SIZE
    across, down, phase, height = waves.T[:, :, None]
    added = waves.new_zeros(len(waves), IMAGE_SIZE, IMAGE_SIZE)
    wavy = waves[:, 3] > 0
    phases = (2 * math.pi * across * at)[:, None, :] + (2 * math.pi * down * at + phase)[:, :, None]
    added[wavy] = height[wavy, :, None] * torch.sin(phases[wavy])
    return added


def _coverage(formulas: Formulas, shapes: _Shapes) -> torch.Tensor:
    """The share of each pixel that each shape covers, (M, 64, 64)."""
    device = shapes.centre.device
    at = torch.arange(IMAGE_SIZE, device=device) + 0.5
    inside = shapes.centre.new_empty(len(shapes.formula), IMAGE_SIZE, IMAGE_SIZE)  # depth behind the edge, in pixels
    contours = torch.nonzero(shapes.formula < NUM_CONTOURS).squeeze(1)
    right = at - shapes.centre[contours, :1]
    down = at - shapes.centre[contours, 1:]
    distance = (right.square()[:, None, :] + down.square()[:, :, None]).sqrt()
    around = torch.atan2(down[:, :, None], right[:, None, :]) - shapes.angle[contours, None, None]
    index = (around * (NUM_ANGLES / (2 * math.pi))).round().long() % NUM_ANGLES
    radii = formulas.radii.to(device)[shapes.formula[contours]] * shapes.radius[contours, None]
    depth = radii.gather(1, index.flatten(1)).view_as(distance) - distance
    width = shapes.width[contours, None, None]
    inside[contours] = torch.where(shapes.outlined[contours, None, None], width - (depth - width).abs(), depth)

    strokes = torch.nonzero(shapes.formula >= NUM_CONTOURS).squeeze(1)
    cos, sin = shapes.angle[strokes].cos(), shapes.angle[strokes].sin()
    turning = torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)
    size = shapes.radius[strokes] - shapes.width[strokes]  # so that the line's edge, not its middle, ends at the radius
    points = formulas.points.to(device)[shapes.formula[strokes] - NUM_CONTOURS] @ turning * size[:, None, None]
    points = points + shapes.centre[strokes, None]
    pixels = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).view(1, -1, 2)
    parts = points.split(8)  # small enough for a processor's cache
    nearest = torch.cat([_nearest(pixels, part) for part in parts]).view(-1, IMAGE_SIZE, IMAGE_SIZE)
    inside[strokes] = shapes.width[strokes, None, None] - nearest
    return (inside + 0.5).clamp(0, 1)


def _nearest(pixels: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The distance of each pixel (1, n, 2) to the nearest point of each path (m, p, 2): (m, n)."""
    squares = points.square().sum(dim=2)[:, None]
    every = pixels.expand(len(points), -1, -1)
    crossed = torch.baddbmm(squares.expand(-1, every.shape[1], -1), every, points.transpose(1, 2), alpha=-2)
    return (crossed.amin(dim=2) + pixels.square().sum(dim=2)).clamp(min=0).sqrt()


def _with_targets(
    formulas: Formulas, images: torch.Tensor, owner: torch.Tensor, shapes: _Shapes, alone: torch.Tensor
) -> Drawings:
    batch_size, device = len(images), images.device
    turn = torch.stack([shapes.angle.cos(), shapes.angle.sin()], dim=1)
    directions = torch.arange(NUM_DIRECTIONS, device=device) * (2 * math.pi / NUM_DIRECTIONS)
    index = ((directions - shapes.angle[:, None]) * (NUM_ANGLES / (2 * math.pi))).round().long() % NUM_ANGLES
    reach = formulas.reach.to(device)[shapes.formula].gather(1, index)
    told = torch.cat([shapes.centre, (shapes.radius / 10).log()[:, None], turn, reach], dim=1)
    table = images.new_zeros(batch_size, MAX_SHAPES, told.shape[1])
    table[shapes.picture, shapes.slot] = told
    shares = torch.stack([(owner == slot).float() for slot in range(MAX_SHAPES)], dim=1)
    share, most = F.avg_pool2d(shares, _PATCH).flatten(2).max(dim=1)  # (B, G * G)
    shown = (share >= _OWNED).float()
    at_patches = table.gather(1, most[:, :, None].expand(-1, -1, table.shape[2]))
    middles = (torch.arange(GRID, device=device) + 0.5) * _PATCH
    middle = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1).view(1, -1, 2)
    offsets = (at_patches[:, :, :2] - middle) / 16

    near = (1 - (shapes.centre[:, None] - middles[None, :, None]).abs() / _PATCH).clamp(min=0)  # (M, G, x and y)
    split = (near[:, :, None, 1] * near[:, None, :, 0]).flatten(1)
    centres = images.new_zeros(batch_size, GRID * GRID).index_add_(0, shapes.picture, split).clamp(max=1)
    lowest = shapes.slot == 0
    return Drawings(
        images=images,
        formula=torch.where(alone, shapes.formula[lowest], -1),
        turn=turn[lowest],
        reach=reach[lowest],
        centres=centres,
        shown=shown,
        poses=torch.cat([offsets, at_patches[:, :, 2:5]], dim=2) * shown[:, :, None],
        reaches=at_patches[:, :, 5:] * shown[:, :, None],
    )
