"""Pictures of a task's data: images by class, image sizes, and a contact sheet, as PNG files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from pipeline.reports.style import BLUE, DRAWING, GREEN, GREY, INK, ORANGE, clear_frame, save, short

_COLOURS = {"train": BLUE, "val": GREEN, "test": ORANGE}
_MAX_NAMED = 60
_COLUMNS = 8


def class_histogram(counts: Mapping[str, Sequence[int]], class_names: Sequence[str], path: str | Path) -> None:
    """Draw how many images each class has in each split: bars with names, or without where there are many classes.

    Args:
        counts: By split, images by label.
        class_names: By label.
        path: Of the PNG file.
    """
    with DRAWING:
        if len(class_names) <= _MAX_NAMED:
            figure = _named_bars(counts, class_names)
        else:
            figure = _ranked_bars(counts, class_names)
        save(figure, path, dpi=130)


def image_sizes(sizes: Mapping[str, Counter[tuple[int, int]]], path: str | Path) -> None:
    """Draw width against height in pixels, a spot for each size, larger where more images have it."""
    with DRAWING:
        figure = Figure(figsize=(6.4, 5.6), layout="constrained", facecolor="white")
        axes: Any = figure.subplots()
        clear_frame(axes)
        sides = [side for counter in sizes.values() for size in counter for side in size] or [1]
        low, high = min(sides) / 1.15, max(sides) * 1.15
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle=":")
        most = max((count for counter in sizes.values() for count in counter.values()), default=1)
        for split, counter in sizes.items():
            spots = np.array([(*size, count) for size, count in counter.items()]).reshape(-1, 3)
            axes.scatter(
                spots[:, 0],
                spots[:, 1],
                s=14 + 500 * spots[:, 2] / most if most > 3 else 22,
                color=_colour(split),
                alpha=0.35,
                linewidths=0,
                label=f"{split}: {counter.total():,} images, {len(counter):,} sizes",
            )
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log")
            axis.set_major_locator(LogLocator(2, subs=(1.0,) if high > 8 * low else (1.0, 1.5), numticks=20))
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="both", length=0)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_xlabel("width in pixels (logarithmic)", color=INK)
        axes.set_ylabel("height in pixels (logarithmic)", color=INK)
        legend = axes.legend(loc="upper left", frameon=False, fontsize=9)
        for handle in legend.legend_handles:
            handle.set_sizes([40])
        save(figure, path, dpi=130)


def contact_sheet(images: Sequence[tuple[str, np.ndarray]], path: str | Path, *, side: int) -> None:
    """Draw images in a grid, each with its class name under it.

    Args:
        images: Class name and uint8 (height, width, 3), at most ``side`` pixels high and wide.
        path: Of the PNG file.
        side: Of an image's place in the grid, in pixels.
    """
    columns, rows = min(_COLUMNS, max(1, len(images))), -(-len(images) // _COLUMNS)
    cell_width, cell_height = side + 8, side + 24
    canvas = np.full((max(1, rows) * cell_height, columns * cell_width, 3), 255, np.uint8)
    with DRAWING:
        dpi = 130
        figure = Figure(figsize=(canvas.shape[1] / dpi, canvas.shape[0] / dpi), facecolor="white")
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for number, (name, pixels) in enumerate(images):
            times = max(1, side // max(pixels.shape))  # images of 32 pixels would be specks
            pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
            height, width, _ = pixels.shape
            left = number % _COLUMNS * cell_width + (cell_width - width) // 2
            top = number // _COLUMNS * cell_height + side - height
            canvas[top : top + height, left : left + width] = pixels
            axes.text(
                (number % _COLUMNS + 0.5) * cell_width,
                number // _COLUMNS * cell_height + side + 4,
                short(name, 18),
                ha="center",
                va="top",
                fontsize=6.5,
                color=INK,
                parse_math=False,
            )
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        save(figure, path, dpi=dpi)


def _named_bars(counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Figure:
    """A row for each class, most images in the first split first; a panel for each split."""
    order = np.argsort(-np.array(next(iter(counts.values()))), kind="stable")
    height = 0.9 + 0.19 * len(class_names)
    figure = Figure(figsize=(2 + 2.6 * len(counts), height), layout="constrained", facecolor="white")
    panels: Any = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    rows = np.arange(len(class_names))
    for axes, (split, of_split) in zip(panels, counts.items(), strict=True):
        numbers = np.array(of_split)[order]
        clear_frame(axes)
        axes.grid(visible=False, axis="y")
        axes.barh(rows, numbers, color=_colour(split), height=0.75)
        for row, number in zip(rows, numbers, strict=True):
            axes.annotate(f"{number:,}", (number, row), (3, 0), textcoords="offset points", va="center", fontsize=7)
        _title(axes, split, numbers)
        axes.tick_params(labelsize=8)
        axes.set_xlim(0, max(1, numbers.max()) * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    names = [short(class_names[label]) for label in order]
    panels[0].set_yticks(rows, names, fontsize=8, parse_math=False)
    panels[0].set_ylim(len(class_names) - 0.4, -0.6)
    return figure


def _ranked_bars(counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Figure:
    """A panel for each split with a bar for each class, most images first; the first and the last are named."""
    figure = Figure(figsize=(9.5, 0.6 + 2.1 * len(counts)), layout="constrained", facecolor="white")
    panels: Any = figure.subplots(len(counts), 1, squeeze=False)[:, 0]
    for axes, (split, of_split) in zip(panels, counts.items(), strict=True):
        order = np.argsort(-np.array(of_split), kind="stable")
        numbers = np.array(of_split)[order]
        clear_frame(axes)
        axes.grid(visible=False, axis="x")
        axes.bar(np.arange(len(numbers)), numbers, color=_colour(split), width=1.0, linewidth=0)
        _title(axes, split, numbers)
        axes.set_xlim(-0.5, len(numbers) - 0.5)
        axes.set_ylim(0, max(1, numbers.max()) * 1.3)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylabel("images", color=INK)
        for place, side in ((0, "left"), (-1, "right")):
            text = f"{short(class_names[order[place]])}: {numbers[place]:,}"
            x = 0.005 if side == "left" else 0.995
            axes.text(x, 0.97, text, transform=axes.transAxes, ha=side, va="top", fontsize=8, parse_math=False)
    panels[-1].set_xlabel(f"{len(class_names)} classes, most images first, in each split by itself", color=INK)
    return figure


def _title(axes: Any, split: str, numbers: np.ndarray) -> None:
    empty = int((numbers == 0).sum())
    without = f", {empty} class{'es' if empty > 1 else ''} without" if empty else ""
    axes.set_title(f"{split}: {numbers.sum():,} images{without}", loc="left", fontsize=10, color=INK, parse_math=False)


def _colour(split: str) -> str:
    return _COLOURS.get(split, GREY)
