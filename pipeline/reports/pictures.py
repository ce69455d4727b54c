"""Pictures of a run: its confusion matrix and its training curve, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reports.style import BLUE, DRAWING, GREEN, GREY, GRID, INK, ORANGE, clear_frame, save, short
from pipeline.tasks.kinds import Measure
from pipeline.tasks.measure_text import measure_named, spaced, unit_text

_RIGHT = matplotlib.colormaps["Blues"]
_WRONG = matplotlib.colormaps["Oranges"]
_SCALE = PowerNorm(0.5, vmin=0, vmax=1)  # a share of 1 % must still be seen
_MAX_NUMBERED = 16
_MAX_NAMED = 120
_MOST_CONFUSED = 15


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], path: str | Path, *, title: str = "") -> None:
    """Draw a confusion matrix to a PNG file.

    A cell shows its share of its row, blue where the prediction is right and orange where it is wrong. With up to 16
    classes the counts stand in the cells; with more the most confused pairs are listed beside the matrix.

    Args:
        counts: shape ``(classes, classes)``; rows are true classes, columns are predictions.
        class_names: the name of each class, by label.
        path: the path of the PNG file.
        title: the title above the picture.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape != (len(class_names),) * 2 or not len(class_names):
        raise ValueError(f"confusion counts of shape {counts.shape} for {len(class_names)} classes; expected a square")
    with DRAWING:
        figure, axes = _matrix_figure(len(class_names), max(map(len, class_names)))
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
        _draw_cells(axes, shares)
        if len(class_names) <= _MAX_NUMBERED:
            _write_counts(axes, counts, shares)
        else:
            _list_confused(axes, counts, class_names)
        _name_classes(axes, class_names)
        right, total = int(counts.trace()), int(counts.sum())
        result = f"top-1 {right / total:.1%}: {right:,} of {total:,} images" if total else "no images"
        _write_title(axes, title, result)
        _draw_scales(figure, axes)
        save(figure, path, dpi=130 if len(class_names) <= 60 else 160)


def confusion_pictures(
    details: Mapping[str, Any], class_names: Sequence[str], folder: Path, *, title: str
) -> list[Path]:
    """Draw the ``confusion`` counts of an evaluation into ``folder``; returns the file that it wrote."""
    picture = folder / "confusion.png"
    confusion_matrix(np.asarray(details["confusion"]), class_names, picture, title=title)
    return [picture]


def training_curve(
    history: Sequence[dict[str, Any]], path: str | Path, *, measures: tuple[Measure, ...], title: str = ""
) -> None:
    """Draw loss, learning rate and results over epochs to a PNG file; results of one unit share a panel.

    Args:
        history: rows with ``epoch`` and any of ``train/loss``, ``learning_rate``, ``val/...`` and ``test/...``.
        path: the path of the PNG file.
        measures: the measures of the task's kind. A result that is none of them is drawn as a plain number.
        title: above the picture.
    """
    if not history:
        raise ValueError("a training curve needs at least one epoch, the history is empty")
    names = {name for row in history for name in row if name.startswith(("val/", "test/"))}
    by_unit: dict[str, list[tuple[str, Measure]]] = {}
    for name in sorted(names, key=lambda name: (name.startswith("test/"), name)):
        measure = measure_named(measures, name) or Measure(name=name.partition("/")[2], unit="")
        by_unit.setdefault(measure.unit, []).append((name, measure))
    with DRAWING:
        figure = Figure(figsize=(7.2, 3.4 + 2.2 * len(by_unit)), layout="constrained", facecolor="white")
        panels: Any = figure.subplots(1 + len(by_unit), 1, sharex=True, squeeze=False)[:, 0]
        _draw_loss(panels[0], history)
        for axes, metrics in zip(panels[1:], by_unit.values(), strict=True):
            _draw_metrics(axes, history, metrics)
        panels[-1].set_xlabel("epoch", color=INK)
        panels[-1].set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
        save(figure, path, dpi=130)


def _matrix_figure(num_classes: int, longest_name: int) -> tuple[Figure, Any]:
    """A figure whose matrix has cells of a readable size, with room for the names (inches)."""
    side = float(np.clip(0.62 * num_classes, 2.4, 9.5 if num_classes <= 100 else 12))
    names = min(longest_name, 28) * _name_points(num_classes) / 72 * 0.62 + 0.5
    beside = 1.2 if num_classes <= _MAX_NUMBERED else 4.2
    width, height = names + side + beside, names + side + 0.9
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((names / width, names / height, side / width, side / height))
    return figure, axes


def _name_points(num_classes: int) -> float:
    """Font size of class names."""
    return float(np.clip(300 / num_classes, 5.0, 10.0))


def _draw_cells(axes: Any, shares: np.ndarray) -> None:
    diagonal = np.eye(len(shares), dtype=bool)
    colours = np.where(diagonal[..., None], _RIGHT(_SCALE(shares)), _WRONG(_SCALE(shares)))
    colours[shares == 0] = (1, 1, 1, 1)
    axes.imshow(colours, interpolation="nearest")
    axes.tick_params(length=0, colors=INK)
    for side in axes.spines.values():
        side.set_color(GREY)
    step = 1 if len(shares) <= 40 else 10
    lines = np.arange(step, len(shares), step) - 0.5
    axes.hlines(lines, -0.5, len(shares) - 0.5, color=GRID, linewidth=0.5)
    axes.vlines(lines, -0.5, len(shares) - 0.5, color=GRID, linewidth=0.5)


def _write_counts(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = _SCALE(shares[row, column]) > 0.62
        axes.text(
            column,
            row,
            f"{int(counts[row, column])}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else INK,
        )


def _list_confused(axes: Any, counts: np.ndarray, class_names: Sequence[str]) -> None:
    wrong = counts - np.diag(counts.diagonal())
    order = [i for i in np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED] if wrong.flat[i] > 0]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    lines = [f"{int(wrong[r, c]):>4}  {short(class_names[r])} → {short(class_names[c])}" for r, c in pairs]
    axes.annotate(
        "most confused (true → predicted)",
        (1, 1),
        (14, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=INK,
        fontweight="bold",
    )
    axes.annotate(
        "\n".join(lines) or "none",
        (1, 1),
        (14, -18),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        linespacing=1.5,
        color=INK,
        parse_math=False,
    )


def _name_classes(axes: Any, class_names: Sequence[str]) -> None:
    every = -(-len(class_names) // _MAX_NAMED)
    ticks = range(0, len(class_names), every)
    names = [short(class_names[i]) for i in ticks]
    points = _name_points(len(class_names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=points, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=points, parse_math=False)
    axes.set_xlabel("predicted", color=INK, labelpad=6)
    axes.set_ylabel("true", color=INK, labelpad=6)


def _write_title(axes: Any, title: str, result: str) -> None:
    text = f"{title}   {result}" if title else result
    axes.set_title(text, loc="left", fontsize=12, color=INK, pad=10, parse_math=False)


def _draw_scales(figure: Figure, axes: Any) -> None:
    """Draw the legend of the colours, right of the matrix at its foot."""
    width, height = figure.get_size_inches()
    box = axes.get_position()
    tall = min(1.5, box.height * height * 0.8)
    for number, (colours, label) in enumerate(((_RIGHT, ""), (_WRONG, "share of the true class"))):
        place = (box.x1 + (0.2 + 0.14 * number) / width, box.y0, 0.12 / width, tall / height)
        bar = figure.colorbar(ScalarMappable(_SCALE, colours), cax=figure.add_axes(place))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=7, colors=INK)
        bar.set_ticks([0.01, 0.1, 0.5, 1.0], labels=["1 %", "10 %", "50 %", "100 %"] if number else [""] * 4)
        bar.set_label(label, fontsize=7, color=INK)


def _draw_loss(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    _style(axes, "training loss", BLUE)
    _line(axes, history, "train/loss", color=BLUE)
    axes.set_ylim(bottom=0)
    rates = axes.twinx()
    _line(rates, history, "learning_rate", color=GREY, linestyle="--", linewidth=1.1, marker="")
    rates.set_ylim(bottom=0)
    rates.set_ylabel("learning rate", color=GREY)
    rates.tick_params(length=0, colors=GREY)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for side in rates.spines.values():
        side.set_visible(False)


def _draw_metrics(axes: Any, history: Sequence[dict[str, Any]], metrics: Sequence[tuple[str, Measure]]) -> None:
    """Results of one unit; the axis begins at 0 unless a result lies below."""
    _style(axes, unit_text(metrics[0][1]), INK)
    lowest = 0.0
    for name, measure in metrics:
        colour = GREEN if name.startswith("val/") else ORANGE
        values = [float(row[name]) for row in history if row.get(name) is not None]
        lowest = min(lowest, *values)
        text = f"{name}  {spaced(measure, values[-1])}"
        _line(axes, history, name, color=colour, label=text, scale=measure.shown(1), marker="o")
    if lowest == 0:
        axes.set_ylim(bottom=0)
    axes.margins(y=0.1)
    place = "lower right" if metrics[0][1].higher_is_better else "upper right"
    axes.legend(loc=place, frameon=False, fontsize=9)


def _line(axes: Any, history: Sequence[dict[str, Any]], name: str, *, scale: float = 1, **look: Any) -> None:
    rows = [row for row in history if row.get(name) is not None]
    epochs = [float(row["epoch"]) for row in rows]
    values = [scale * float(row[name]) for row in rows]
    axes.plot(epochs, values, **({"linewidth": 1.8, "marker": "o" if len(rows) < 25 else "", "markersize": 4} | look))


def _style(axes: Any, label: str, colour: str) -> None:
    axes.set_ylabel(label, color=colour)
    clear_frame(axes)
