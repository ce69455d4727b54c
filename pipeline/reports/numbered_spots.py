"""Numbers beside the spots of a picture, placed so that they lie on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.reports.search_trials import Trial, result
from pipeline.reports.style import GREY, INK

_BESIDE = [
    (distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
    for distance in (11, 22, 33, 44, 55)
    for angle in (135, 110, 160, -45, -20, -70)
]
"""Where the middle of a number may lie, in points from its trial's spot; the best place first."""
_NEAR = 12
"""Points from its spot beyond which a line leads to a number."""


def number_trials(figure: Figure, axes: Any, front: Sequence[Trial], drawn: Sequence[Trial]) -> None:
    """Write trials' numbers beside their spots, where as little as possible is in the way.

    Args:
        figure: the figure with the axes.
        axes: the axes with the spots, parameters against results.
        front: the trials whose numbers are written.
        drawn: all trials with a spot.
    """
    figure.draw_without_rendering()  # lays it out: from here on places are known
    points = 72 / figure.dpi

    def spot(trial: Trial) -> np.ndarray:
        return points * axes.transData.transform((trial["parameters"], result(trial)))

    taken = [(*(spot(trial) - 4), *(spot(trial) + 4)) for trial in drawn]
    for trial in front:
        text = str(trial["number"])
        half = np.array([2.8 * len(text) + 1, 5])
        boxes = [(*(spot(trial) + offset - half), *(spot(trial) + offset + half)) for offset in np.array(_BESIDE)]
        hits = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = hits.index(min(hits))
        taken.append(boxes[best])
        leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            text, (trial["parameters"], result(trial)), _BESIDE[best], textcoords="offset points", fontsize=8.5,
            ha="center", va="center", color=INK, zorder=6, gid=f"number {text}",
            arrowprops=leader if math.hypot(*_BESIDE[best]) > _NEAR else None,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes (left, low, right, high) have a point in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
