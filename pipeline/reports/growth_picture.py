"""A picture of how time and memory of a train step grow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from pipeline.reports.style import BLUE, DRAWING, INK, ORANGE, clear_frame, save

_MEASURES = {
    "ms an image": ("seconds_per_image", 1e3, BLUE),
    "MiB an image, kept for backward": ("saved_bytes_per_image", 2**-20, ORANGE),
}


def growth_picture(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> None:
    """Draw a column an axis, time above and memory below, to the PNG file ``path``.

    Args:
        rows: ``axis``, ``value``, ``seconds_per_image``, ``saved_bytes_per_image``; of each axis in order.
        path: the path of the picture.
        title: the title above all panels.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a picture of growth needs at least one row")
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    with DRAWING:
        figure = Figure(figsize=(3.0 * len(axes_names), 5.2), layout="constrained", facecolor="white")
        panels: Any = figure.subplots(2, len(axes_names), squeeze=False, sharex="col")
        for column, axis in enumerate(axes_names):
            own = [row for row in rows if row["axis"] == axis]
            values = [row["value"] for row in own]
            for line, (label, (key, unit, color)) in enumerate(_MEASURES.items()):
                panel = panels[line][column]
                heights = [row[key] * unit for row in own]
                panel.plot(values, heights, color=color, marker="o", markersize=4)
                panel.set_ylim(0, 1.08 * max(heights))
                clear_frame(panel)
                if not column:
                    panel.set_ylabel(label, color=INK)
            bottom = panels[1][column]
            if min(values) == 0:
                bottom.set_xscale("symlog", base=2, linthresh=1)
                bottom.set_xlim(-0.3, 1.3 * max(values))
            else:
                bottom.set_xscale("log", base=2)
            bottom.set_xticks(values, [str(value) for value in values])
            bottom.xaxis.set_minor_locator(NullLocator())
            bottom.xaxis.set_minor_formatter(NullFormatter())
            bottom.set_xlabel(axis, color=INK)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
        save(figure, path, dpi=130)
