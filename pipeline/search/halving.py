"""Successive halving (ASHA, arXiv 1810.05934) whose decisions do not depend on which trial was faster.

At each rung a trial is compared with trials of smaller number alone. So the decision about it is a function of the
trials' results, and a search that was interrupted, or had another number of workers, ends in the same way. While a
comparison is not complete the trial goes on; what it did after the rung that turns out to be its last is not used.
Trial 0 is compared with no other and reaches the last epoch.

Only gains are compared here (`pipeline.tasks.kinds.Measure.gain`): whatever the measure, the larger one is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FACTOR = 3
"""About one in so many of the trials at a rung goes on, and the next rung is so many times as far."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How far a trial has come."""

    gains: Mapping[int, float] = field(default_factory=dict)
    """The objective's gain by epoch, from 1; a larger gain is better."""
    ended: bool = False
    """No more gains will come: the trial was stopped, failed, or has done its last epoch."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the rule decides about a trial, from the results known so far."""

    stops_at: int | None = None
    """The epoch after which the trial is stopped; None if nothing stops it so far."""
    final: bool = True
    """Whether results of other trials can no longer change the verdict, as far as the trial itself has come."""


GRACE_STEPS = 20
"""No trial is judged before so many steps: a ninth of a small task's epochs may be four steps, which is noise."""


def rungs(epochs: int, every: int, warmup_epochs: int, steps: int) -> tuple[int, ...]:
    """The epochs after which trials are compared: about a ninth and a third of the way.

    Args:
        epochs: of a whole trial.
        every: a trial is validated every so many epochs.
        warmup_epochs: no trial is judged within them, nor after a single epoch.
        steps: of an epoch.
    """
    found = set()
    for part in (FACTOR**2, FACTOR):
        rung = every * math.ceil(epochs / part / every)
        if max(1, warmup_epochs) < rung < epochs and rung * steps >= GRACE_STEPS:
            found.add(rung)
    return tuple(sorted(found))


def verdicts(courses: Sequence[Course], at: Sequence[int]) -> list[Verdict]:
    """One verdict for each trial, in the order of their numbers.

    Args:
        courses: of trials 0, 1, ..., also of those that have not begun.
        at: the rungs. Without any, no trial is stopped.
    """
    found: list[Verdict] = []
    passed: list[int] = []
    """By trial, how many rungs it has certainly passed: its gain counts at the next one."""
    for course in courses:
        verdict, through = _judge(course, at, courses[: len(found)], found, passed)
        found.append(verdict)
        passed.append(through)
    return found


def _judge(
    course: Course, at: Sequence[int], others: Sequence[Course], verdicts: Sequence[Verdict], passed: Sequence[int]
) -> tuple[Verdict, int]:
    for k, rung in enumerate(at):
        if rung not in course.gains:
            return Verdict(), k  # it has not come so far, or failed before
        gains = []
        for other, verdict, through in zip(others, verdicts, passed, strict=True):
            stopped = verdict.stops_at is not None and verdict.stops_at < rung
            if stopped or (verdict.final and other.ended and rung not in other.gains):
                continue
            if through < k or rung not in other.gains:
                return Verdict(final=False), k
            gains.append(other.gains[rung])
        if gains and course.gains[rung] < _threshold(gains):
            return Verdict(stops_at=rung), k
    return Verdict(), len(at)


def _threshold(gains: Sequence[float]) -> float:
    """About one in FACTOR of the gains reaches it; it may lie between two of them."""
    return statistics.quantiles(gains, n=FACTOR, method="inclusive")[-1] if len(gains) > 1 else gains[0]
