"""The trials of a search as a table, for the terminal and for MLflow's page."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.console.text_table import aligned
from pipeline.search.sampler import Outcome
from pipeline.search.space import as_settings, label


def chosen_line(outcomes: Sequence[Outcome], number: int) -> str:
    """What was chosen, and how it compares with the default, for people."""
    best, default = outcomes[number], outcomes[0]
    assert best.value is not None
    settings = " ".join(as_settings(best.point))
    if number == 0:
        return f"the default is the best of {len(outcomes)} trials: val {best.value:.1%}: {settings}"
    versus = "which failed" if default.value is None else f"{default.value:.1%}"
    return f"trial {number} is chosen, of {len(outcomes)}: val {best.value:.1%} (the default's: {versus}): {settings}"


def command_line(task: str, outcome: Outcome) -> str:
    """What trains a task as a trial was trained, beside the options of the search's own command."""
    settings = " ".join(f"--set {setting}" for setting in as_settings(outcome.point))
    return f"to train it so: python jobs/fanout_vtab.py --tasks {task} {settings}"


def trials_table(outcomes: Sequence[Outcome], best: int) -> str:
    """One line a trial, the best first: those that did their last epoch, then stopped ones, then failed ones.

    Args:
        outcomes: of trials 0, 1, ...
        best: the one that is chosen.
    """

    def place(number: int) -> tuple[bool, bool, int, float, int]:
        outcome = outcomes[number]
        return (outcome.value is None, not outcome.whole, -outcome.epochs, -(outcome.value or 0.0), number)

    names = list(outcomes[0].point) if outcomes else []
    rows = []
    for number in sorted(range(len(outcomes)), key=place):
        outcome = outcomes[number]
        rows.append(
            [
                f"{number}{'*' if number == best else ' '}",
                "default" if number == 0 else "",
                "failed" if outcome.value is None else f"{100 * outcome.value:.1f}",
                str(outcome.epochs),
                "-" if not outcome.parameters else f"{outcome.parameters:,}",
                *(label(outcome.point[name]) for name in names),
            ]
        )
    lines = aligned(["trial", "", "val", "epochs", "parameters", *names], rows, left=2)
    lines.insert(1, "-" * len(lines[0]))
    lines.append("* chosen: the highest val of those that did their last epoch")
    return "\n".join(lines)
