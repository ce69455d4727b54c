"""The final table of a fan-out, as text, and the averages over its tasks.

Averages are never mixed: ``mean19`` (over the tasks) and ``group_mean`` (over the means of Natural, Specialized and
Structured) exist only when all 19 full VTAB-1k tasks ran; otherwise there is ``mean_of_<n>``, and only where all tasks
are measured alike. A published number is shown only beside a task that ran as the benchmark has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.console.text_table import aligned, duration
from pipeline.reports.rows import TaskRow
from pipeline.search.report import chosen_line, command_line, trials_table
from pipeline.search.trials import winner
from pipeline.tasks.catalogue import TASKS, VTAB_GROUPS
from pipeline.tasks.kinds import TOP1
from pipeline.tasks.measure_text import described, spaced, unit_text

_MAX_ERROR_CHARACTERS = 300
_HEADER = ["task", "group", "val", "test", "paper", "parameters", "images/s", "time", "version"]
_MEANS = {"mean19": "mean of the 19 tasks", "group_mean": "mean of the 3 groups"}


def fanout_table(rows: Sequence[TaskRow], *, packed: bool = False) -> str:
    """The rows of a fan-out as aligned text, with footnotes and averages.

    Args:
        rows: the rows of all tasks.
        packed: whether tasks were trained in packs.
    """
    notes: list[str] = []
    lines = aligned(_HEADER, [_cells(row, notes) for row in rows], left=2)
    lines.insert(1, "-" * len(lines[0]))
    lines += ["-" * len(lines[0]), *_average_lines(rows)]
    if (seeds := max((row.seeds for row in rows), default=1)) > 1:
        lines.append(f"± standard deviation over {seeds} seeds; the version is the first seed's")
    if any(row.champion for row in rows):
        lines.append("* champion: what `hst-registry pull TASK` fetches")
    if packed:
        lines.append("in a pack time is a task's part of the pack's, by images; images/s count by the clock")
    lines += [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join(lines)


def search_tables(rows: Sequence[TaskRow]) -> str:
    """The trials of every task that was only searched, as text, or the reason why a task has none."""
    parts = []
    for row in rows:
        if row.status != "searched":
            parts.append(f"{row.task}: {row.status}: {row.error}")
            continue
        number = winner(row.outcomes, row.measure)
        assert number is not None
        table, chosen = (make(row.outcomes, number, row.measure) for make in (trials_table, chosen_line))
        parts.append("\n".join([row.task, table, chosen, command_line(row.task, row.outcomes[number])]))
    return "\n\n".join(parts)


def averages(rows: Sequence[TaskRow]) -> dict[str, float]:
    """Averages of ``test``: ``mean19`` and ``group_mean``, or ``mean_of_<n>``.

    Empty where no task has a result, or where those of a mean are not measured alike.
    """
    return _averages(rows, {row.task: row.test for row in rows if row.has_result and row.test is not None})


def published_averages(rows: Sequence[TaskRow]) -> dict[str, float]:
    """The paper's averages in per cent, over the same full tasks; empty unless all 19 ran."""
    if not _all_full(rows):
        return {}
    published = {row.task: row.published for row in rows if row.published is not None}
    return _averages(rows, published) if published.keys() >= _vtab_names() else {}


def _averages(rows: Sequence[TaskRow], values: dict[str, float]) -> dict[str, float]:
    averaged = _averaged(rows)
    if not averaged or len({row.measure for row in averaged}) > 1:
        return {}
    if not _all_full(rows):
        return {f"mean_of_{len(values)}": _mean(values.values())}
    by_group = [[values[row.task] for row in averaged if row.group == group] for group in VTAB_GROUPS]
    return {"mean19": _mean(values[row.task] for row in averaged), "group_mean": _mean(map(_mean, by_group))}


def _averaged(rows: Sequence[TaskRow]) -> list[TaskRow]:
    """The tasks that a mean is over: the 19 where all of them ran in full, else all that have a result."""
    if _all_full(rows):
        return [row for row in rows if row.task in _vtab_names()]
    return [row for row in rows if row.has_result]


def _all_full(rows: Sequence[TaskRow]) -> bool:
    return {row.task for row in rows if row.has_result and not row.subset_reasons} >= _vtab_names()


def _vtab_names() -> set[str]:
    return {name for name, task in TASKS.items() if task.group in VTAB_GROUPS and name.startswith("vtab-")}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _cells(row: TaskRow, notes: list[str]) -> list[str]:
    return [
        row.task,
        row.group,
        row.measure.cell(row.val, row.val_std),
        _test_cell(row, notes),
        _paper_cell(row, notes),
        "-" if row.parameters is None else f"{row.parameters:,}",
        _rate(row.images_per_second),
        duration(row.seconds),
        _version_cell(row, notes),
    ]


def _test_cell(row: TaskRow, notes: list[str]) -> str:
    if row.status not in ("done", "pending"):
        return row.status + (_note(notes, f"{row.task}: {row.error}") if row.error else "")
    measured = "" if row.measure == TOP1 else _note(notes, f"{row.task} is measured by {described(row.measure)}")
    doubts = "".join(_note(notes, f"{row.task}: doubtful: {doubt}") for doubt in row.doubts)
    return row.measure.cell(row.test, row.test_std) + measured + doubts


def _paper_cell(row: TaskRow, notes: list[str]) -> str:
    paper = f"{row.published:.1f}" if row.is_comparable else "-"
    if row.status not in ("done", "pending") or not row.subset_reasons:
        return paper
    what = "a subset of the task's full data" if row.published is None else "no published number beside it"
    return paper + _note(notes, f"{what}: {'; '.join(row.subset_reasons)}")


def _version_cell(row: TaskRow, notes: list[str]) -> str:
    if row.status == "pending":
        return "pending" + _note(notes, str(row.error))
    return "-" if row.version is None else f"{row.version}{'*' if row.champion else ' '}"


def _note(notes: list[str], text: str) -> str:
    """The mark of a footnote; equal texts share one."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    flat = flat if len(flat) <= _MAX_ERROR_CHARACTERS else flat[:_MAX_ERROR_CHARACTERS] + " ..."
    if flat not in notes:
        notes.append(flat)
    return f" [{notes.index(flat) + 1}]"


def _average_lines(rows: Sequence[TaskRow]) -> list[str]:
    ours, paper = averages(rows), published_averages(rows)
    averaged = _averaged(rows)
    if averaged and not ours:
        units = {f"{row.measure.name} ({unit_text(row.measure) or 'a plain number'})": None for row in averaged}
        return [f"no mean over tasks: they are measured by {', '.join(units)}"]
    lines = []
    for name, value in ours.items():
        text = _MEANS.get(name, f"mean of {name.rpartition('_')[2]} {'task' if name == 'mean_of_1' else 'tasks'}")
        beside = f", paper {paper[name]:.2f} %" if name in paper else ""
        lines.append(f"{text}: test {spaced(averaged[0].measure, value, decimals=2)}{beside}")
    return lines


def _rate(images_per_second: float | None) -> str:
    if images_per_second is None:
        return "-"
    return f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.1f}"
