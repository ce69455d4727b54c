"""The trials of a search as a table, for the terminal and for MLflow's page."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.console.text_table import aligned
from pipeline.search.sampler import Outcome
from pipeline.search.space import as_settings, label
from pipeline.tasks.kinds import TOP1, Measure
from pipeline.tasks.measure_text import described


def chosen_line(outcomes: Sequence[Outcome], number: int, measure: Measure) -> str:
    """Which trial is chosen and how it compares with the default, for people."""
    best, default = outcomes[number], outcomes[0]
    assert best.value is not None
    settings, val = " ".join(as_settings(best.point)), measure.text(best.value)
    if number == 0:
        return f"the default is the best of {len(outcomes)} trials: val {val}: {settings}"
    versus = "which failed" if default.value is None else measure.text(default.value)
    return f"trial {number} is chosen, of {len(outcomes)}: val {val} (the default's: {versus}): {settings}"


def command_line(task: str, outcome: Outcome) -> str:
    """The command that trains a task as a trial was trained, without the options of the search's own command."""
    settings = " ".join(f"--set {setting}" for setting in as_settings(outcome.point))
    return f"to train it so: python jobs/fanout_vtab.py --tasks {task} {settings}"


def trials_table(outcomes: Sequence[Outcome], best: int, measure: Measure) -> str:
    """A line for each trial, the best first: trials that did their last epoch, then stopped ones, then failed ones.

    Args:
        outcomes: the outcomes of trials 0, 1, ...
        best: the number of the chosen trial.
        measure: the measure of the outcomes' values.
    """

    def place(number: int) -> tuple[bool, bool, int, float, int]:
        outcome = outcomes[number]
        gain = 0.0 if outcome.value is None else measure.gain(outcome.value)
        return (outcome.value is None, not outcome.whole, -outcome.epochs, -gain, number)

    names = list(outcomes[0].point) if outcomes else []
    rows = []
    for number in sorted(range(len(outcomes)), key=place):
        outcome = outcomes[number]
        rows.append(
            [
                f"{number}{'*' if number == best else ' '}",
                "default" if number == 0 else "",
                "failed" if outcome.value is None else measure.cell(outcome.value),
                str(outcome.epochs),
                "-" if not outcome.parameters else f"{outcome.parameters:,}",
                *(label(outcome.point[name]) for name in names),
            ]
        )
    lines = aligned(["trial", "", "val", "epochs", "parameters", *names], rows, left=2)
    lines.insert(1, "-" * len(lines[0]))
    extreme = "highest" if measure.higher_is_better else "lowest"
    lines.append(f"* chosen: the {extreme} val of those that did their last epoch")
    if measure != TOP1:
        lines.append(f"val is {described(measure)}")
    return "\n".join(lines)
