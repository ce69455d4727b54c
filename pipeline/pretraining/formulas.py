"""The shapes of the pretraining pictures. Each class is a formula, in the spirit of RCDB and Visual Atoms.

The first half are *contours*: a polygon's radius, sharpened or rounded, times the exponential of a sum of waves (radial
contours: Kataoka et al., CVPR 2022; waves around an orbit: Takashima et al., CVPR 2023). The second half are *strokes*:
open paths that are sums of cosines in x and y, or broken lines. Each formula is in a standard position: its centre is
the origin, its farthest point (the *tip*) is at (1, 0), and no other part is nearly as far away. So a turn means the
same for all formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from hst.randomness import generator

NUM_FORMULAS = 512
NUM_CONTOURS = NUM_FORMULAS // 2
"""Formulas 0 to NUM_CONTOURS - 1 are contours; the others are strokes."""
NUM_ANGLES = 512
"""Number of angles in a contour's table of radii."""
NUM_POINTS = 64
"""Number of points of a stroke, evenly spaced along it."""

_TIP_WIDTH = math.radians(40)  # points within this angle of the tip belong to it
_SECOND = 0.92  # no other point may be farther from the centre; the tip is at 1


@dataclass(frozen=True)
class Formulas:
    """All shapes in their standard position."""

    radii: torch.Tensor
    """(NUM_CONTOURS, NUM_ANGLES): each contour's radius at the angles from 0 to 2 pi."""
    points: torch.Tensor
    """(NUM_FORMULAS - NUM_CONTOURS, NUM_POINTS, 2): x and y of each stroke's points."""
    reach: torch.Tensor
    """(NUM_FORMULAS, NUM_ANGLES): how far each shape reaches around the angles from 0 to 2 pi. It is the maximum over
    the shape's points of distance * cos(difference between the point's angle and that angle)^8."""


def build_formulas(seed: int) -> Formulas:
    """Build the shapes; they are a function of the seed."""
    radii = np.stack([_contour(generator(seed, "pretraining", "contour", i)) for i in range(NUM_CONTOURS)])
    strokes = range(NUM_FORMULAS - NUM_CONTOURS)
    points = np.stack([_stroke(generator(seed, "pretraining", "stroke", i)) for i in strokes])
    angles = np.arange(NUM_ANGLES) * (2 * math.pi / NUM_ANGLES)
    reach = [_reach(angles, own) for own in radii]
    reach += [_reach(np.arctan2(own[:, 1], own[:, 0]), np.hypot(*own.T)) for own in points]
    return Formulas(*(torch.from_numpy(table).to(torch.float32) for table in (radii, points, np.stack(reach))))


def _reach(around: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The reach at each of NUM_ANGLES of points with angles ``around`` (n,) and distances (n,)."""
    angles = np.arange(NUM_ANGLES) * (2 * math.pi / NUM_ANGLES)
    return np.asarray((np.cos(angles[:, None] - around).clip(min=0) ** 8 * distance).max(axis=1))


def _contour(random: torch.Generator) -> np.ndarray:
    angles = np.arange(NUM_ANGLES) * (2 * math.pi / NUM_ANGLES)
    orders = np.arange(1, 7)
    while True:
        corners, sharpness, waves = _uniform(random, 3)
        sector = 2 * math.pi / (3 + int(5 * corners))  # 3 to 7 corners
        polygon = math.cos(sector / 2) / np.cos(angles % sector - sector / 2)
        heights = (0.1 + 0.35 * waves) * _normal(random, 6) / orders
        phases = 2 * math.pi * _uniform(random, 6)
        radii = polygon ** (2 * sharpness) * np.exp(heights @ np.cos(np.outer(orders, angles) + phases[:, None]))
        outline = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outline -= (outline.max(axis=0) + outline.min(axis=0)) / 2
        around = np.unwrap(np.arctan2(outline[:, 1], outline[:, 0]))
        if np.any(np.diff(around, append=around[0] + 2 * math.pi) <= 0):
            continue  # seen from its centre the outline goes back and forth, so its radius is no function of the angle
        if (outline := _in_standard_position(outline)) is None:
            continue
        around = np.arctan2(outline[:, 1], outline[:, 0])
        return np.interp(angles, around[order := np.argsort(around)], np.hypot(*outline[order].T), period=2 * math.pi)


def _stroke(random: torch.Generator) -> np.ndarray:
    along = np.linspace(0, 1, 8 * NUM_POINTS)
    while True:
        kind, number = _uniform(random, 2)
        if kind < 0.5:
            waves = 2 + int(3 * number)  # 2 to 4 cosines in each coordinate
            orders = np.arange(1, waves + 1)
            cosines = np.cos(math.pi * np.outer(orders, along))
            path = ((_normal(random, 2 * waves).reshape(2, waves) / orders) @ cosines).T
        else:
            corners = 3 + int(4 * number)  # 3 to 6, including the two ends
            places = _normal(random, 2 * corners).reshape(corners, 2)
            path = np.stack([np.interp(along * (corners - 1), np.arange(corners), xy) for xy in places.T], axis=1)
        length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
        evenly = np.linspace(0, length[-1], NUM_POINTS)
        path = np.stack([np.interp(evenly, length, xy) for xy in path.T], axis=1)
        path -= (path.max(axis=0) + path.min(axis=0)) / 2
        if (standing := _in_standard_position(path)) is not None:
            return standing


def _in_standard_position(points: np.ndarray) -> np.ndarray | None:
    """Turn and scale centred points (n, 2) so that the tip is at (1, 0); None if there is no clear tip."""
    distance = np.hypot(*points.T)
    tip = int(distance.argmax())
    angle = math.atan2(points[tip, 1], points[tip, 0])
    cos, sin = math.cos(angle), math.sin(angle)
    turned = points @ np.array([(cos, -sin), (sin, cos)]) / distance[tip]
    elsewhere = np.abs(np.arctan2(turned[:, 1], turned[:, 0])) > _TIP_WIDTH
    return turned if elsewhere.any() and np.hypot(*turned[elsewhere].T).max() <= _SECOND else None


def _uniform(random: torch.Generator, count: int) -> np.ndarray:
    return torch.rand(count, generator=random, dtype=torch.float64).numpy()


def _normal(random: torch.Generator, count: int) -> np.ndarray:
    return torch.randn(count, generator=random, dtype=torch.float64).numpy()
