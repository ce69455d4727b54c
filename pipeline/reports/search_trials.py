"""How the trials of a search look in every one of its pictures, and the texts that all pictures share.

A trial is a mapping of ``number`` (0 is the default's), ``point`` (field: value), ``values`` (the measure's true value
by epoch), ``value`` (the true value that counts, None where the trial failed), ``whole`` (it did its last epoch),
``epochs`` (after which it ended), ``parameters`` (trainable ones) and ``failed`` (why, or None).

Better is up in every picture. So each picture first replaces true values by heights (`Scale`), which are in the unit
that people see and have their sign turned where lower is better; the labels beside them show true values again.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.reports.style import GREY, INK, ORANGE, short
from pipeline.tasks.kinds import PERCENT, TOP1, Measure
from pipeline.tasks.measure_text import unit_text

Trial = Mapping[str, Any]


class Mark(NamedTuple):
    """How the default or the winner differs from other trials."""

    colour: str
    text: str


_MIN_SPAN = 2
"""Per cent below the median of the whole trials that are always shown: of an image, or of the median's own size."""
_MIN_LENGTH = 1
"""Per cent, as above: the labels on a shorter axis would be equal."""
_MAX_REASONS = 5


@dataclass(frozen=True)
class Scale:
    """How the values of one measure are drawn and written."""

    measure: Measure

    @property
    def label(self) -> str:
        """What stands beside an axis: ``val, per cent``, ``val mae, px``."""
        name = "val" if self.measure == TOP1 else f"val {self.measure.name}"
        unit = unit_text(self.measure)
        return f"{name}, {unit}" if unit else name

    @property
    def worse(self) -> tuple[str, str]:
        """The sign and the word for values beyond an axis, on its worse side."""
        return ("<", "below") if self.measure.higher_is_better else (">", "above")

    def heights(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials with heights in the place of true values."""
        return [
            {
                **trial,
                "value": None if is_failed(trial) else self._height(trial["value"]),
                "values": {epoch: self._height(value) for epoch, value in trial["values"].items()},
            }
            for trial in trials
        ]

    def shown(self, height: float) -> float:
        """The number that people see at a height."""
        return self.measure.gain(height) + 0.0  # without the sign of a negative zero

    def number(self, height: float) -> str:
        """That number as text: ``70.0``."""
        return f"{self.shown(height):.1f}" if self.measure.unit == PERCENT else f"{self.shown(height):.4g}"

    def text(self, height: float) -> str:
        """The number with its unit: ``70.0 %``."""
        return f"{self.number(height)} {self.measure.unit}".rstrip()

    def part(self, per_cent: float, of: float) -> float:
        """So many per cent: of the images where the measure is a fraction, else of a height."""
        return per_cent if self.measure.unit == PERCENT else abs(of) * per_cent / 100 or 1.0

    def _height(self, value: float) -> float:
        return self.measure.shown(self.measure.gain(float(value)))


def check(trials: Sequence[Trial], winner: int | None = None) -> None:
    """Raises ValueError where there are no trials, or the winner is none of them."""
    numbers = [trial["number"] for trial in trials]
    if not numbers:
        raise ValueError("a picture of a search needs at least one trial, there is none")
    if winner is not None and winner not in numbers:
        raise ValueError(f"winner {winner}: expected one of the trials {numbers}, or None")


def is_failed(trial: Trial) -> bool:
    """Whether the trial has no result."""
    return trial["value"] is None


def result(trial: Trial) -> float:
    """The height of a trial that did not fail."""
    return float(trial["value"])


def shown_results(trials: Sequence[Trial], scale: Scale) -> tuple[float, float]:
    """The ends of an axis with room for the best result, the default, and the whole trials not far behind.

    Trials that were stopped early or came to nothing are left out, since they would press the others into one line.
    """
    drawn = [trial for trial in trials if not is_failed(trial)]
    whole = [trial for trial in drawn if trial["whole"]] or drawn
    high, middle = max(map(result, drawn)), float(np.median([result(trial) for trial in whole]))
    floor = middle - max(3 * (high - middle), scale.part(_MIN_SPAN, middle))
    low = min(result(trial) for trial in whole if result(trial) >= floor or trial["number"] == 0)
    return min(low, high - scale.part(_MIN_LENGTH, high)), high


def marks(trials: Sequence[Trial], winner: int | None, scale: Scale) -> dict[int, Mark]:
    """The colours and the legends of the default and the winner, with their results, by number."""
    found = {}
    for trial in trials:
        number = trial["number"]
        names = [name for name, of in (("default", 0), ("winner", winner)) if number == of]
        if names:
            value = "failed" if is_failed(trial) else scale.text(result(trial))
            stopped = "" if trial["whole"] or is_failed(trial) else f" when stopped at epoch {trial['epochs']}"
            colour = ORANGE if number == winner else INK
            found[number] = Mark(colour, f"{' and '.join(names)}: trial {number}, {value}{stopped}")
    return found


def counts(trials: Sequence[Trial]) -> str:
    """How many trials there are, and how they ended."""
    if len(trials) == 1:
        return "1 trial: nothing to compare it with"
    failed = sum(map(is_failed, trials))
    whole = sum(bool(trial["whole"]) for trial in trials)
    stopped = len(trials) - whole - failed
    others = [f", {number} {what}" for number, what in ((stopped, "stopped early"), (failed, "failed")) if number]
    return f"{len(trials)} trials: {whole or 'none'} whole{''.join(others)}"


def line_look(trial: Trial, marked: Mapping[int, Mark], colour: Any) -> dict[str, Any]:
    """How a trial's line is drawn; ``colour`` is for trials that are neither the default nor the winner."""
    look = {"gid": f"trial {trial['number']}", "color": colour, "solid_joinstyle": "round"}
    if trial["number"] in marked:
        return look | {"color": marked[trial["number"]].colour, "linewidth": 2.8, "zorder": 4, "markersize": 5}
    if is_failed(trial):
        return look | {"linewidth": 0.9, "linestyle": ":", "zorder": 1, "markersize": 2}
    if not trial["whole"]:
        return look | {"linewidth": 0.8, "alpha": 0.5, "zorder": 2, "markersize": 2.5}
    return look | {"linewidth": 1.4, "alpha": 0.9, "zorder": 3, "markersize": 3}


def line_legend(trials: Sequence[Trial], marked: Mapping[int, Mark], colour: Any) -> list[Line2D]:
    """The legend of the lines in the picture; ``colour`` is that of a whole trial."""
    handles = [Line2D([], [], color=mark.colour, linewidth=2.8, label=mark.text) for mark in marked.values()]
    others = [trial for trial in trials if trial["number"] not in marked]
    endings = (
        ("whole", colour, [trial for trial in others if trial["whole"]]),
        ("stopped early", GREY, [trial for trial in others if not trial["whole"] and not is_failed(trial)]),
        ("failed", GREY, [trial for trial in others if is_failed(trial)]),
    )
    for text, line_colour, ended in endings:
        if ended:
            look = line_look(ended[0], {}, line_colour) | {"gid": None}
            handles.append(Line2D([], [], label=text, **look))
    return handles


def write(axes: Any, title: str, note: str) -> None:
    """The title of a picture and, smaller, a note under it."""
    axes.set_title(short(title, 90), loc="left", fontsize=12, color=INK, pad=26 if note else 10, parse_math=False)
    axes.annotate(
        note, (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=GREY,
        parse_math=False,
    )  # fmt: skip


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Write the legend under the picture."""
    columns = 2 if len(handles) in (2, 4) else 3
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)


def message(title: str, note: str, lines: str = "") -> Figure:
    """A picture that says why there is nothing to draw."""
    figure = Figure(figsize=(7.2, 0.8 + 0.2 * (lines.count("\n") + 1)), layout="constrained", facecolor="white")
    axes: Any = figure.subplots()
    axes.set_axis_off()
    write(axes, title, note)
    axes.text(0, 1, lines, va="top", fontsize=9, linespacing=1.5, color=INK, transform=axes.transAxes, parse_math=False)
    return figure


def all_failed(trials: Sequence[Trial], title: str) -> Figure | None:
    """A picture that says that no trial has a result, and why; None where a trial has one."""
    if not all(map(is_failed, trials)):
        return None
    reasons = Counter(trial["failed"] or "no reason is known" for trial in trials).most_common(_MAX_REASONS)
    lines = [textwrap.fill(short(f"{count} × {reason}", 300), 100) for reason, count in reasons]
    note = "the only trial failed" if len(trials) == 1 else f"all {len(trials)} trials failed"
    return message(title, note, "\n".join(lines))
