"""Successive halving (ASHA, arXiv 1810.05934) whose decisions do not depend on which trial was faster.

A trial is compared at each rung with trials of smaller number alone. What it is told is then a function of the trials'
results: a search that was interrupted, or had another number of workers, ends as one that was not. A trial whose
comparison is not complete yet goes on meanwhile; what it did beyond the rung that turns out to be its last is not used.
Trial 0 is compared with none and reaches the last epoch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FACTOR = 3
"""Of the trials at a rung, about one in so many goes on; and the next rung is so many times as far."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How far a trial has come."""

    values: Mapping[int, float] = field(default_factory=dict)
    """The objective by epoch, from 1; higher is better."""
    ended: bool = False
    """No more values will come: it was stopped, failed, or has done its last epoch."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the rule says of a trial, from what is known so far."""

    stops_at: int | None = None
    """The epoch after which it is stopped; None where nothing stops it so far."""
    final: bool = True
    """Whether more results of other trials can change nothing about it, as far as it has come itself."""


GRACE_STEPS = 20
"""Within which no trial is judged: of a small task a ninth of the epochs may be four steps, whose results are noise."""


def rungs(epochs: int, every: int, warmup_epochs: int, steps: int) -> tuple[int, ...]:
    """The epochs after which trials of so many are compared: about a ninth and a third of them.

    Args:
        epochs: of a whole trial.
        every: a trial is validated after every so many.
        warmup_epochs: within which none is judged, nor after a single epoch.
        steps: of an epoch.
    """
    found = set()
    for part in (FACTOR**2, FACTOR):
        rung = every * math.ceil(epochs / part / every)
        if max(1, warmup_epochs) < rung < epochs and rung * steps >= GRACE_STEPS:
            found.add(rung)
    return tuple(sorted(found))


def verdicts(courses: Sequence[Course], at: Sequence[int]) -> list[Verdict]:
    """One verdict a trial, in the order of their numbers.

    Args:
        courses: of trials 0, 1, ..., those that have not begun among them.
        at: the rungs; none stops no trial.
    """
    found: list[Verdict] = []
    passed: list[int] = []
    """By trial, how many rungs it has certainly passed: its value is one of those at the next."""
    for course in courses:
        verdict, through = _judge(course, at, courses[: len(found)], found, passed)
        found.append(verdict)
        passed.append(through)
    return found


def _judge(
    course: Course, at: Sequence[int], others: Sequence[Course], verdicts: Sequence[Verdict], passed: Sequence[int]
) -> tuple[Verdict, int]:
    for k, rung in enumerate(at):
        if rung not in course.values:
            return Verdict(), k  # has not come so far, or failed before
        values = []
        for other, verdict, through in zip(others, verdicts, passed, strict=True):
            stopped = verdict.stops_at is not None and verdict.stops_at < rung
            if stopped or (verdict.final and other.ended and rung not in other.values):
                continue
            if through < k or rung not in other.values:
                return Verdict(final=False), k
            values.append(other.values[rung])
        if values and course.values[rung] < _threshold(values):
            return Verdict(stops_at=rung), k
    return Verdict(), len(at)


def _threshold(values: Sequence[float]) -> float:
    """Which about one in FACTOR of the values reach; between two of them where need be."""
    return statistics.quantiles(values, n=FACTOR, method="inclusive")[-1] if len(values) > 1 else values[0]
