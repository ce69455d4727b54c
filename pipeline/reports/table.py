"""The final table of a fan-out, as text, and the averages over its tasks.

Averages are never mixed: ``mean19`` (over the tasks) and ``group_mean`` (over the means of Natural, Specialized and
Structured) exist only when all 19 full VTAB-1k tasks ran; otherwise there is ``mean_of_<n>``. A published number is
shown only beside a task that ran as the benchmark has it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.console.text_table import aligned, duration
from pipeline.tasks.catalogue import TASKS, VTAB_GROUPS

Row = dict[str, Any]

_MAX_ERROR_CHARACTERS = 300
_WITH_RESULT = ("done", "pending")


def fanout_table(rows: Sequence[Row], *, packed: bool = False) -> str:
    """The rows of a fan-out as aligned text, with footnotes and averages.

    Keys of a row: task, group, status (``done``, ``pending``: done but for the registration, ``failed``), val and test
    (fractions or None), published (per cent or None), subset_reasons, parameters, images_per_second, seconds, version,
    champion, error. With ``packed`` tasks were trained in packs.
    """
    notes: list[str] = []
    header = ["task", "group", "val", "test", "paper", "parameters", "images/s", "time", "version"]
    cells = [_cells(row, notes) for row in rows]
    lines = aligned(header, cells, left=2)
    lines.insert(1, "-" * len(lines[0]))
    lines += ["-" * len(lines[0]), *_average_lines(rows)]
    if (seeds := max((row.get("seeds") or 1 for row in rows), default=1)) > 1:
        lines.append(f"± standard deviation over {seeds} seeds; the version is the first seed's")
    if any(row.get("champion") for row in rows):
        lines.append("* champion: what `hst-registry pull TASK` fetches")
    if packed:
        lines.append("in a pack time is a task's part of the pack's, by images; images/s count by the clock")
    lines += [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join(lines)


def seed_statistics(scores: Sequence[Mapping[str, float]], metric: str) -> dict[str, Any]:
    """Of a row: val and test, the means over seeds, their standard deviations (of a sample; None for one seed), and
    how many seeds.

    Args:
        scores: ``val/<metric>``, if there was a selection run, and ``test/<metric>``, by seed.
        metric: as in ``top1``.
    """
    found: dict[str, Any] = {"seeds": len(scores)}
    for split in ("val", "test"):
        values = [score[name] for score in scores if (name := f"{split}/{metric}") in score]
        found[split] = _mean(values) if values else None
        found[f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return found


def averages(rows: Sequence[Row]) -> dict[str, float]:
    """Averages of ``test``, fractions: ``mean19`` and ``group_mean``, or ``mean_of_<n>``; empty where none is done."""
    return _averages(rows, {row["task"]: row["test"] for row in rows if _has_result(row)})


def published_averages(rows: Sequence[Row]) -> dict[str, float]:
    """The paper's averages in per cent, over the same full tasks; empty unless all 19 ran."""
    if not _all_full(rows):
        return {}
    published = {row["task"]: row["published"] for row in rows if row["published"] is not None}
    return _averages(rows, published) if published.keys() >= _vtab_names() else {}


def comparable(row: Row) -> bool:
    """Whether the paper's number may stand beside the row."""
    return _has_result(row) and row.get("published") is not None and not row.get("subset_reasons")


def _averages(rows: Sequence[Row], values: dict[str, float]) -> dict[str, float]:
    if not values:
        return {}
    if not _all_full(rows):
        return {f"mean_of_{len(values)}": _mean(values.values())}
    full = [row for row in rows if row["task"] in _vtab_names()]
    by_group = [[values[row["task"]] for row in full if row["group"] == group] for group in VTAB_GROUPS]
    return {"mean19": _mean(values[row["task"]] for row in full), "group_mean": _mean(map(_mean, by_group))}


def _all_full(rows: Sequence[Row]) -> bool:
    full = {row["task"] for row in rows if _has_result(row) and not row.get("subset_reasons")}
    return full >= _vtab_names()


def _vtab_names() -> set[str]:
    return {name for name, task in TASKS.items() if task.group in VTAB_GROUPS and name.startswith("vtab-")}


def _has_result(row: Row) -> bool:
    return row["status"] in _WITH_RESULT and row.get("test") is not None


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _cells(row: Row, notes: list[str]) -> list[str]:
    reasons = row.get("subset_reasons") or []
    paper = f"{row['published']:.1f}" if comparable(row) else "-"
    test = _percent(row.get("test"), row.get("test_std"))
    version = "-" if row.get("version") is None else f"{row['version']}{'*' if row.get('champion') else ' '}"
    if row["status"] == "pending":
        version = "pending" + _note(notes, str(row["error"]))
    if row["status"] not in _WITH_RESULT:
        test = str(row["status"])
        if row.get("error"):
            test += _note(notes, f"{row['task']}: {row['error']}")
    elif reasons:
        what = "a subset of the task's full data" if row.get("published") is None else "no published number beside it"
        paper += _note(notes, f"{what}: {'; '.join(reasons)}")
    return [
        row["task"],
        row["group"],
        _percent(row.get("val"), row.get("val_std")),
        test,
        paper,
        "-" if row.get("parameters") is None else f"{row['parameters']:,}",
        _rate(row.get("images_per_second")),
        duration(row.get("seconds")),
        version,
    ]


def _note(notes: list[str], text: str) -> str:
    """The mark of a footnote; equal texts share one."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    flat = flat if len(flat) <= _MAX_ERROR_CHARACTERS else flat[:_MAX_ERROR_CHARACTERS] + " ..."
    if flat not in notes:
        notes.append(flat)
    return f" [{notes.index(flat) + 1}]"


def _average_lines(rows: Sequence[Row]) -> list[str]:
    ours, paper = averages(rows), published_averages(rows)
    texts = {"mean19": "mean of the 19 tasks", "group_mean": "mean of the 3 groups"}
    lines = []
    for name, value in ours.items():
        text = texts.get(name, f"mean of {name.rpartition('_')[2]} {'task' if name == 'mean_of_1' else 'tasks'}")
        beside = f", paper {paper[name]:.2f} %" if name in paper else ""
        lines.append(f"{text}: test {100 * value:.2f} %{beside}")
    return lines


def _percent(fraction: float | None, deviation: float | None = None) -> str:
    if fraction is None:
        return "-"
    return f"{100 * fraction:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _rate(images_per_second: float | None) -> str:
    if images_per_second is None:
        return "-"
    return f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.1f}"
