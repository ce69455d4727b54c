"""Tables and durations as text for a terminal."""

from __future__ import annotations


def aligned(header: list[str], rows: list[list[str]], *, left: int) -> list[str]:
    """Columns two spaces apart, the first ``left`` flush left, the rest flush right; footnote marks stick out."""
    marks = [[_split_mark(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(text) for text, _ in column) for column in zip(*marks, strict=True)]
    mark_widths = [max(len(mark) for _, mark in column) for column in zip(*marks, strict=True)]
    lines = []
    for row in marks:
        cells = [
            (text.ljust(widths[i]) if i < left else text.rjust(widths[i])) + mark.ljust(mark_widths[i])
            for i, (text, mark) in enumerate(row)
        ]
        lines.append("  ".join(cells))
    return lines


def _split_mark(cell: str) -> tuple[str, str]:
    text, bracket, rest = cell.partition(" [")
    return text, bracket + rest


def duration(seconds: float | None) -> str:
    """For people: 2 h 05 min, 1 min 10 s, 9 s."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
