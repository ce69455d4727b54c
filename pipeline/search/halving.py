"""Successive halving (ASHA, arXiv 1810.05934) whose decisions do not depend on which trial was faster.

At each rung (an epoch after which trials are compared) a trial is compared only with trials of smaller numbers. The
decision is therefore a function of the trials' results. A search ends in the same way if it was interrupted or had
another number of workers. A trial goes on while its comparison is incomplete. If the comparison then stops it at a
rung, its later epochs are not used. Trial 0 is compared with no other trial and reaches the last epoch.

Only gains are compared here (`pipeline.tasks.kinds.Measure.gain`): whatever the measure, the larger one is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FACTOR = 3
"""About one in FACTOR trials at a rung goes on, and the next rung comes after FACTOR times as many epochs."""


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
    """Whether the verdict is certain for the epochs that the trial has done, whatever other trials still return."""


GRACE_STEPS = 20
"""No trial is judged before this many steps. A ninth of a small task's epochs may be four steps, which is noise."""


def rungs(epochs: int, every: int, warmup_epochs: int, steps: int) -> tuple[int, ...]:
    """The epochs after which trials are compared: about a ninth and a third of the way.

    Args:
        epochs: the number of epochs of a whole trial.
        every: the number of epochs from one validation to the next.
        warmup_epochs: the number of warm-up epochs. No trial is judged during them, or after a single epoch.
        steps: the number of steps in an epoch.
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
        courses: the courses of trials 0, 1, ..., including trials that have not begun.
        at: the rungs. Without rungs, no trial is stopped.
    """
    found: list[Verdict] = []
    passed: list[int] = []
    """For each trial, the number of rungs that it has certainly passed. Its gain counts at the next rung."""
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
            return Verdict(), k  # the trial has not reached this rung, or failed before it
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
