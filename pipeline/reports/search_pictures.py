"""Pictures of a search, as PNG files: trials by searched field, by parameters and by epoch, and which field matters.

`search_trials` has what a trial is and how it looks in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.reports.numbered_spots import number_trials
from pipeline.reports.search_axes import OUTSIDE, Axis, draw_axes, place, spread
from pipeline.reports.search_trials import (
    Mark,
    Scale,
    Trial,
    all_failed,
    check,
    counts,
    is_failed,
    legend,
    line_legend,
    line_look,
    marks,
    message,
    result,
    shown_results,
    write,
)
from pipeline.reports.style import BLUE, DRAWING, GREY, GRID, INK, clear_frame, save
from pipeline.search.space import Range, Space
from pipeline.tasks.kinds import Measure

_BLUES = matplotlib.colormaps["YlGnBu"](np.linspace(0.35, 1, 64))
_COLOURS = LinearSegmentedColormap.from_list("results", _BLUES).with_extremes(under=GREY)
_FAILED = "failed"


def parallel_coordinates(
    trials: Sequence[Trial], space: Space, path: str | Path, *, title: str, winner: int | None, measure: Measure
) -> None:
    """Draw a line for each trial through an upright axis for each searched field and, last, one for the result.

    Args:
        trials: the search's trials, at least one.
        space: the space that was searched.
        path: the path of the PNG file.
        title: the title above the picture.
        winner: a trial's number, or None.
        measure: the measure of the trials' values.
    """
    check(trials, winner)
    scale = Scale(measure)
    with DRAWING:
        figure = all_failed(trials, title) or _coordinates(scale.heights(trials), space, title, winner, scale)
        save(figure, path, dpi=130)


def result_against_parameters(
    trials: Sequence[Trial], path: str | Path, *, title: str, winner: int | None, measure: Measure
) -> None:
    """Draw results against trainable parameters, and the front: whole trials that no smaller trial equals.

    Args:
        trials: the search's trials, at least one.
        path: the path of the PNG file.
        title: the title above the picture.
        winner: a trial's number, or None.
        measure: the measure of the trials' values.
    """
    check(trials, winner)
    scale = Scale(measure)
    with DRAWING:
        figure = all_failed(trials, title) or _spots(scale.heights(trials), title, winner, scale)
        save(figure, path, dpi=130)


def trial_curves(
    trials: Sequence[Trial],
    rungs: Sequence[int],
    path: str | Path,
    *,
    title: str,
    winner: int | None,
    measure: Measure,
) -> None:
    """Draw the results by epoch, a line for each trial as far as it counts.

    Args:
        trials: the search's trials, at least one.
        rungs: the epochs after which trials were compared, drawn as upright lines.
        path: the path of the PNG file.
        title: the title above the picture.
        winner: a trial's number, or None.
        measure: the measure of the trials' values.
    """
    check(trials, winner)
    scale = Scale(measure)
    with DRAWING:
        figure = all_failed(trials, title) or _curves(scale.heights(trials), rungs, title, winner, scale)
        save(figure, path, dpi=130)


def importance_bars(importance: Mapping[str, float], path: str | Path, *, title: str) -> None:
    """Draw each field's share of what the results differ by, the largest on top; shares are fractions."""
    with DRAWING:
        save(_bars(importance, title), path, dpi=130)


def _coordinates(trials: Sequence[Trial], space: Space, title: str, winner: int | None, scale: Scale) -> Figure:
    marked = marks(trials, winner, scale)
    low, high = shown_results(trials, scale)
    order = sorted(range(len(trials)), key=lambda i: -math.inf if is_failed(trials[i]) else result(trials[i]))
    columns = [place(part, [trial["point"][name] for trial in trials]) for name, part in space.items()]
    columns = [Axis(spread(column.heights, order), column.ticks) for column in columns]
    columns.append(_result_column(trials, low, high, scale))
    figure = Figure(layout="constrained", facecolor="white")
    axes: Any = figure.subplots()
    places = draw_axes(axes, [*space, scale.label], columns)
    figure.set_size_inches(places[-1] + 0.8, 5.4)
    colours = Normalize(low, high)
    for i in order:
        colour = GREY if is_failed(trials[i]) else _COLOURS(colours(result(trials[i])))
        axes.plot(places, [column.heights[i] for column in columns], marker="o", **line_look(trials[i], marked, colour))
    strip = axes.inset_axes((places[-1] + 0.1, 0, 0.12, 1), transform=axes.transData)
    strip.imshow(np.linspace(0, 1, 256)[:, None], cmap=_COLOURS, origin="lower", aspect="auto")
    strip.set_axis_off()
    write(axes, title, counts(trials))
    legend(figure, line_legend(trials, marked, _COLOURS(0.6)))
    return figure


def _result_column(trials: Sequence[Trial], low: float, high: float, scale: Scale) -> Axis:
    """The axis of the results; worse results, and the trials that failed, have places under it."""
    worse = f"{scale.worse[0]} {scale.number(low)}"
    names = [_FAILED if is_failed(trial) else worse if result(trial) < low else "" for trial in trials]
    under = [name for name in (worse, _FAILED) if name in names]
    below = {name: -OUTSIDE * (k + 1) for k, name in enumerate(under)}
    values = [scale.shown(result(trial)) for trial, name in zip(trials, names, strict=True) if not name]
    first, last = sorted((scale.shown(low), scale.shown(high)))
    inside = _better_up(place(Range(low=first, high=last, log=False), values), scale)
    heights = iter(inside.heights)
    return Axis(
        [below[name] if name else next(heights) for name in names],
        [*((height, name) for name, height in below.items()), *inside.ticks],
    )


def _better_up(axis: Axis, scale: Scale) -> Axis:
    """An axis of numbers as people see them, turned over where lower is better."""
    if scale.measure.higher_is_better:
        return axis
    return Axis([1 - height for height in axis.heights], [(1 - height, text) for height, text in axis.ticks[::-1]])


def _spots(trials: Sequence[Trial], title: str, winner: int | None, scale: Scale) -> Figure:
    marked = marks(trials, winner, scale)
    figure = Figure(figsize=(7.6, 5.4), layout="constrained", facecolor="white")
    axes: Any = figure.subplots()
    clear_frame(axes)
    drawn = [trial for trial in trials if not is_failed(trial)]
    low, high = shown_results(trials, scale)
    foot = low - 0.1 * (high - low)
    _result_axis(axes, low, high, foot if any(result(trial) < low for trial in drawn) else None, scale)
    _parameter_axis(axes, [trial["parameters"] for trial in drawn])
    handles: dict[str, Any] = {}
    for trial in sorted(drawn, key=lambda trial: (trial["number"] not in marked, not trial["whole"])):
        under = result(trial) < low
        text, look = _spot_look(trial, marked, f" ({scale.worse[1]} {scale.text(low)})" if under else "")
        (spot,) = axes.plot([trial["parameters"]], [foot if under else result(trial)], linestyle="", label=text, **look)
        handles.setdefault(text, spot)
    front = _front(drawn)
    if len(drawn) > 1 and front:
        xs = [*(trial["parameters"] for trial in front), axes.get_xlim()[1]]
        ys = [*map(result, front), result(front[-1])]
        look = {"where": "post", "color": BLUE, "linewidth": 1.3, "alpha": 0.6, "zorder": 2, "gid": "front"}
        (handles["front"],) = axes.step(xs, ys, label="Pareto front, with the trials' numbers", **look)
    write(axes, title, counts(trials))
    legend(figure, list(handles.values()))
    number_trials(figure, axes, front, drawn)
    return figure


def _spot_look(trial: Trial, marked: Mapping[int, Mark], under: str) -> tuple[str, dict[str, Any]]:
    """A spot's legend and how it is drawn; ``under`` says that its result is worse than the picture shows."""
    look = {"gid": f"trial {trial['number']}", "marker": "v" if under else "o", "markersize": 6, "zorder": 3}
    if trial["number"] in marked:
        mark = marked[trial["number"]]
        return mark.text, look | {"color": mark.colour, "markersize": 9, "zorder": 5}
    if trial["whole"]:
        return f"whole{under}", look | {"color": BLUE, "alpha": 0.75, "markeredgewidth": 0}
    return f"stopped early{under}", look | {"color": GREY, "markerfacecolor": "none", "markersize": 5}


def _front(trials: Sequence[Trial]) -> list[Trial]:
    """The whole trials that no other beats, by a better result or by fewer parameters; the smallest first."""
    front: list[Trial] = []
    whole = [trial for trial in trials if trial["whole"]]
    for trial in sorted(whole, key=lambda trial: (trial["parameters"], -result(trial), trial["number"])):
        if not front or result(trial) > result(front[-1]):
            front.append(trial)
    return front


def _result_axis(axes: Any, low: float, high: float, foot: float | None, scale: Scale) -> None:
    """The upright axis of the results; its foot, if there is one, holds the results that are worse."""
    span = high - low
    axes.set_ylim((low if foot is None else foot) - 0.05 * span, high + 0.1 * span)
    ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.yaxis.set_major_locator(FixedLocator([y for y in ticks if low <= y <= high]))
    _write_numbers(axes, scale)
    if foot is not None:
        axes.axhspan(foot - 0.05 * span, foot + 0.05 * span, color=GRID, alpha=0.5, linewidth=0, zorder=0.5)


def _write_numbers(axes: Any, scale: Scale) -> None:
    """Label the upright axis with the numbers that people see."""
    axes.set_ylabel(scale.label, color=INK)
    if not scale.measure.higher_is_better:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{scale.shown(y):.4g}"))


def _parameter_axis(axes: Any, parameters: Sequence[int]) -> None:
    """A logarithmic axis whose ticks can be read, however near its ends are."""
    low, high = min(parameters) / 1.15, max(parameters) * 1.15
    ticks = LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(6, steps=[1, 2, 5, 10])
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([x for x in ticks.tick_values(low, high) if low <= x <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k"))
    axes.set_xlabel("trainable parameters (logarithmic)", color=INK)


def _curves(trials: Sequence[Trial], rungs: Sequence[int], title: str, winner: int | None, scale: Scale) -> Figure:
    marked = marks(trials, winner, scale)
    figure = Figure(figsize=(7.6, 5.4), layout="constrained", facecolor="white")
    axes: Any = figure.subplots()
    clear_frame(axes)
    axes.grid(visible=False, axis="x")
    for rung in rungs:
        axes.axvline(rung, color=GRID, linewidth=2.2, zorder=0.5, gid=f"rung {rung}")
    for trial in trials:
        epochs = sorted(epoch for epoch in trial["values"] if epoch <= trial["epochs"])
        values = [trial["values"][epoch] for epoch in epochs]
        look = line_look(trial, marked, BLUE if trial["whole"] else GREY)
        look |= {"marker": "x", "markersize": 5} if is_failed(trial) else {"marker": "o"}
        axes.plot(epochs, values, markevery=[-1], **look)
    axes.set_xlabel("epoch", color=INK)
    _write_numbers(axes, scale)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    write(axes, title, counts(trials))
    handles = line_legend(trials, marked, BLUE)
    if rungs:
        handles.append(Line2D([], [], color=GRID, linewidth=2.2, label="trials are compared"))
    legend(figure, handles)
    return figure


def _bars(importance: Mapping[str, float], title: str) -> Figure:
    if not importance:
        return message(title, "too few trials, or too equal ones, to say which field mattered")
    ranked = sorted(importance.items(), key=lambda item: item[1], reverse=True)
    shares = [100 * share for _, share in ranked]
    figure = Figure(figsize=(7.2, 1.3 + 0.34 * len(ranked)), layout="constrained", facecolor="white")
    axes: Any = figure.subplots()
    clear_frame(axes)
    axes.grid(visible=False, axis="y")
    axes.barh(range(len(ranked)), shares, color=BLUE, height=0.66)
    for row, share in enumerate(shares):
        axes.annotate(
            f"{share:.0f} %", (share, row), (4, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    axes.set_yticks(range(len(ranked)), [name for name, _ in ranked], parse_math=False)
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    axes.set_xlim(0, max(*shares, 1) * 1.1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("share of what the results differ by (fANOVA), per cent", color=INK)
    write(axes, title, "")
    return figure
