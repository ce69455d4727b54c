"""Upright axes, one for each searched field: the heights of its values, from 0 to 1, and the labels beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from pipeline.reports.style import GREY, INK
from pipeline.search.space import Choice, Range, label

OUTSIDE = 0.1
"""The distance from an end of the axis to a value outside the space, and from there to the next."""
_CLEAR = 0.07
"""The least distance between an end and the next tick."""
_STEP = 0.012
"""The distance between trials with one value, if there is room."""
_LETTER, _BOLD_LETTER = 0.078, 0.095
"""The width of a letter in inches, in a tick's label and in a field's name."""
_BOX = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.2}


@dataclass(frozen=True)
class Axis:
    """One field's values, placed."""

    heights: list[float]
    """The height of each value, in their order: 0 to 1, or beyond for a value outside the space."""
    ticks: list[tuple[float, str]]
    """Heights and labels, lowest first."""


def place(part: Choice | Range, values: Sequence[Any]) -> Axis:
    """The axis of a field: evenly spaced for a choice, smallest lowest; linear or logarithmic for a range.

    Args:
        part: the field's part of the space.
        values: the value of each trial. A value outside the space (the default's may be one) gets a place of its own.
    """
    return _choice(part, values) if isinstance(part, Choice) else _range(part, values)


def spread(heights: Sequence[float], order: Sequence[int]) -> list[float]:
    """The heights, with equal ones moved apart, but neither onto the next height nor off the axis.

    Args:
        heights: the height of each trial.
        order: the trials' places; among equal heights the first becomes the lowest.
    """
    levels = sorted(set(heights))
    gap = min((high - low for low, high in itertools.pairwise(levels)), default=1.0)
    apart = list(heights)
    for level in levels:
        equal = [i for i in order if heights[i] == level]
        step = min(_STEP, 0.6 * gap / max(1, len(equal) - 1))
        lowest = level - step * (len(equal) - 1) / 2
        if 0 <= level <= 1:
            lowest = min(max(lowest, 0), 1 - step * (len(equal) - 1))
        for k, i in enumerate(equal):
            apart[i] = lowest + step * k
    return apart


def draw_axes(axes: Any, names: Sequence[str], columns: Sequence[Axis]) -> list[float]:
    """Draw upright axes, as far apart as their labels need; returns their places in inches."""
    low = min(0, *(height for column in columns for height, _ in column.ticks))
    high = max(1, *(height for column in columns for height, _ in column.ticks))
    places: list[float] = []
    before = 0.0
    for name, column in zip(names, columns, strict=True):
        heights = [height for height, _ in column.ticks]
        label = _LETTER * max(len(text) for _, text in column.ticks)
        half = _BOLD_LETTER * len(name) / 2
        x = places[-1] + max(1.2, label + 0.5, before + half + 0.2) if places else max(label, half) + 0.2
        places.append(x)
        before = half
        axes.vlines(x, 0, 1, color=INK, linewidth=1, zorder=5)
        axes.vlines([x, x], [min(0, *heights), 1], [0, max(1, *heights)], color=INK, linewidth=1, linestyle=":")
        for height, text in column.ticks:
            axes.hlines(height, x - 0.04, x, color=INK, linewidth=1, zorder=5)
            axes.annotate(
                text, (x, height), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8,
                color=INK if 0 <= height <= 1 else GREY, bbox=_BOX, zorder=6, parse_math=False,
            )  # fmt: skip
        axes.text(x, high + 0.04, name, ha="center", fontsize=9.5, fontweight="bold", color=INK, parse_math=False)
    axes.set_xlim(0, places[-1] + before)
    axes.set_ylim(low - 0.03, high + 0.1)
    axes.set_axis_off()
    return places


def _choice(part: Choice, values: Sequence[Any]) -> Axis:
    options = [_plain(value) for value in part.values]
    for value in map(_plain, values):
        if value not in options:
            options.append(value)
    options = _ascending(options)
    places = [(i + 0.5) / len(options) for i in range(len(options))]
    heights = [places[options.index(_plain(value))] for value in values]
    return Axis(heights, [(height, label(option)) for height, option in zip(places, options, strict=True)])


def _range(part: Range, values: Sequence[Any]) -> Axis:
    scale = math.log10 if part.log else float
    low, high = scale(part.low), scale(part.high)
    ticks = {value: (scale(value) - low) / (high - low) for value in (part.low, *_between(part), part.high)}
    ticks = {v: h for v, h in ticks.items() if v in (part.low, part.high) or _CLEAR < h < 1 - _CLEAR}
    strange = _ascending(
        [value for i, value in enumerate(values) if not _is_in(part, value) and value not in values[:i]]
    )
    above = [value for value in strange if _is_number(value) and value > part.high]
    below = [value for value in strange if value not in above]
    outside = [(value, 1 + OUTSIDE * (k + 1)) for k, value in enumerate(above)]
    outside += [(value, -OUTSIDE * (k + 1)) for k, value in enumerate(reversed(below))]
    heights = [
        (scale(value) - low) / (high - low) if _is_in(part, value) else next(h for v, h in outside if v == value)
        for value in values
    ]
    return Axis(heights, sorted((height, label(value)) for value, height in (*ticks.items(), *outside)))


def _between(part: Range) -> list[float]:
    """Round values within a range: powers of ten, or evenly spaced numbers."""
    if part.log:
        first, last = math.ceil(math.log10(part.low)), math.floor(math.log10(part.high))
        found = [10.0**power for power in range(first, last + 1)]
    else:
        found = [float(value) for value in MaxNLocator(4, integer=part.whole).tick_values(part.low, part.high)]
    return [int(value) if part.whole else value for value in found if part.low < value < part.high]


def _is_in(part: Range, value: Any) -> bool:
    return _is_number(value) and bool(part.low <= value <= part.high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _ascending(values: list[Any]) -> list[Any]:
    """Sorts numbers by size and lists of numbers by their sums; leaves anything else in its order."""
    if all(_is_number(value) for value in values):
        return sorted(values)
    if all(isinstance(value, list) and all(map(_is_number, value)) for value in values):
        return sorted(values, key=lambda value: (sum(value), value))
    return values
