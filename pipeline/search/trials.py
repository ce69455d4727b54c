"""The trials of one search: what is tried next, when a trial is stopped, and how the trials ended.

This module does not know Ray. The code that runs trials asks `Trials` for the next one and passes it the rows. Two
functions that `Trials` is given keep the trials that have ended and find them again.

A row and an `Outcome` hold the measure's true value, as evaluation computed it. Where values are compared, here and in
the sampler, they are turned into gains first (`Measure.gain`), so that a larger one is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pipeline.search.halving import Course, Verdict, verdicts
from pipeline.search.sampler import Outcome, Sampler
from pipeline.search.space import Point
from pipeline.tasks.kinds import Measure

Row = dict[str, Any]


class Next(Enum):
    """Why there is no next trial."""

    WAIT = "the next point depends on trials that have not ended"
    DONE = "every trial has begun"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that is to be run."""

    number: int
    point: Point


@dataclass(kw_only=True)
class Record:
    """A trial that has ended, as it is kept."""

    number: int
    point: Point
    rows: list[Row]
    """One row for each epoch. Rows after the last epoch that counts are among them if the trial was stopped late."""
    failed: str | None = None
    """Why the trial has no result."""
    parameters: int = 0
    device_seconds: float = 0.0
    images_per_second: float = 0.0


@dataclass(kw_only=True)
class _Running:
    point: Point
    rows: dict[int, Row] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Trials:
    """The trials of one search, by number; trial 0 has the default's point.

    Args:
        default: the point of trial 0.
        sampler: gives the other points.
        count: the largest number of trials.
        epochs: the number of epochs of a whole trial.
        measure: the measure by which trials are compared. A row holds its value as ``val/<name>``.
        rungs: the rungs from `pipeline.search.halving`. Without rungs, no trial is stopped.
        budget_seconds: no other trial begins once the ended ones took this many device-seconds.
        find: returns a trial's record from an earlier run of this search, or None.
        keep: is called with each new record.
    """

    def __init__(
        self,
        *,
        default: Point,
        sampler: Sampler,
        count: int,
        epochs: int,
        measure: Measure,
        rungs: Sequence[int] = (),
        budget_seconds: float | None = None,
        find: Callable[[Trial], Record | None] = lambda trial: None,
        keep: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._default, self._sampler = default, sampler
        self._count, self._epochs, self._measure, self._rungs = count, epochs, measure, rungs
        self._budget, self._find, self._keep = budget_seconds, find, keep
        self._begun = 0
        self._waiting: Trial | None = None
        """A trial that has a point but has not begun."""
        self._running: dict[int, _Running] = {}
        self.records: dict[int, Record] = {}
        """The trials that have ended."""
        self.found = 0
        """The number of trials that an earlier run had ended, so that they were not run again."""

    def next(self) -> Trial | Next:
        """The next trial to run; trials that are found are skipped."""
        while self._begun < self._count:
            number = self._begun
            if number and any(n not in self.records for n in range(self._sampler.needs(number))):
                return Next.WAIT
            if self._waiting is None:
                point = self._sampler.point(number, self._ended_first()) if number else self._default
                self._waiting = Trial(number=number, point=point)
            trial = self._waiting
            record = self._find(trial)
            if record is None and self._budget is not None and self._spent() >= self._budget:
                return Next.DONE
            self._waiting = None
            self._begun += 1
            if record is None:
                self._running[number] = _Running(point=trial.point)
                return trial
            self.records[number] = record
            self.found += 1
        return Next.DONE

    def on_rows(self, number: int, rows: Sequence[Row], **facts: Any) -> bool:
        """Takes new rows of a running trial and fields of its record; returns whether the trial ends now."""
        running = self._running[number]
        running.rows |= {int(row["epoch"]): row for row in rows}
        running.facts |= facts
        if self._epochs in running.rows or self._is_stopped(number):
            self._end(number)
            return True
        return False

    def on_failed(self, number: int, reason: str) -> None:
        """Ends a running trial that has no result, and would have none if it were run again."""
        self._end(number, failed=reason)

    def outcomes(self) -> list[Outcome]:
        """The outcomes of all trials that have begun, in order.

        Raises:
            ValueError: a trial has not ended.
        """
        if self._running:
            raise ValueError(f"trials {sorted(self._running)} have not ended")
        return self._ended_first()

    def _ended_first(self) -> list[Outcome]:
        """The outcomes of trials 0, 1, ... up to the first that has not ended."""
        ended: list[Record] = []
        while len(ended) in self.records:
            ended.append(self.records[len(ended)])
        found = verdicts([self._course(number) for number in range(len(ended))], self._rungs)
        return [self._outcome(record, verdict) for record, verdict in zip(ended, found, strict=True)]

    def _outcome(self, record: Record, verdict: Verdict) -> Outcome:
        """The part of a record that counts."""
        values = values_of(record.rows, self._measure)
        last = verdict.stops_at or self._epochs
        whole = verdict.stops_at is None and record.failed is None and last in values
        failed = record.failed is not None and verdict.stops_at is None
        return Outcome(
            point=record.point,
            value=None if failed else values.get(last),
            whole=whole,
            epochs=last if last in values else len(record.rows),
            parameters=record.parameters,
        )

    def _is_stopped(self, number: int) -> bool:
        courses = [self._course(n) for n in range(number + 1)]
        return verdicts(courses, self._rungs)[number].stops_at is not None

    def _course(self, number: int) -> Course:
        if number in self.records:
            return Course(gains=self._gains(self.records[number].rows), ended=True)
        if number in self._running:
            return Course(gains=self._gains(self._running[number].rows.values()))
        return Course()

    def _gains(self, rows: Iterable[Row]) -> dict[int, float]:
        return {epoch: self._measure.gain(value) for epoch, value in values_of(rows, self._measure).items()}

    def _end(self, number: int, failed: str | None = None) -> None:
        running = self._running.pop(number)
        rows = [running.rows[epoch] for epoch in sorted(running.rows)]
        record = Record(number=number, point=running.point, rows=rows, failed=failed, **running.facts)
        self.records[number] = record
        self._keep(record)

    def _spent(self) -> float:
        return sum(record.device_seconds for record in self.records.values())


def values_of(rows: Iterable[Row], measure: Measure) -> dict[int, float]:
    """The measure's true values on val, by epoch; epochs without a validation are left out."""
    name = f"val/{measure.name}"
    return {int(row["epoch"]): float(row[name]) for row in rows if name in row}


def winner(outcomes: Sequence[Outcome], measure: Measure, registers: int | None = None) -> int | None:
    """The number of the best trial among those that did their last epoch: by best value, then by fewest parameters.

    Args:
        outcomes: the outcomes of all trials.
        measure: the measure of the outcomes' values.
        registers: if given, only trials with this number of registers count.

    Returns:
        None where no trial counts.
    """
    whole = [
        (-measure.gain(outcome.value), outcome.parameters, number)
        for number, outcome in enumerate(outcomes)
        if outcome.whole and outcome.value is not None
        if registers is None or outcome.point.get("num_registers") == registers
    ]
    return min(whole)[2] if whole else None


def common_registers(by_task: Sequence[tuple[Measure, Sequence[Outcome]]]) -> int | None:
    """The number of registers that suits all tasks best; the smallest if several are equally good.

    If all tasks have one measure, each number is judged by the mean, over tasks, of its best value in the task. Values
    of different measures cannot be averaged. In that case each task ranks the numbers, and their mean rank decides.

    Args:
        by_task: the measure of each task, and the outcomes of its trials.

    Returns:
        None where no number has a whole trial in every task.
    """
    best = [_best_gains(outcomes, measure) for measure, outcomes in by_task]
    numbers = [number for number in dict.fromkeys(n for gains in best for n in gains) if all(number in g for g in best)]
    if len({measure for measure, _ in by_task}) > 1:
        best = [{number: -float(_place(number, gains, numbers)) for number in numbers} for gains in best]
    means = {number: sum(gains[number] for gains in best) / len(best) for number in numbers}
    return min(means, key=lambda number: (-means[number], number), default=None)


def _best_gains(outcomes: Sequence[Outcome], measure: Measure) -> dict[int, float]:
    """The gain of the best whole trial for each number of registers."""
    found: dict[int, float] = {}
    for outcome in outcomes:
        if outcome.whole and outcome.value is not None:
            number, gain = outcome.point["num_registers"], measure.gain(outcome.value)
            found[number] = max(found.get(number, gain), gain)
    return found


def _place(number: int, gains: Mapping[int, float], numbers: Sequence[int]) -> int:
    """The number's rank in a task: how many of the numbers are better."""
    return sum(gains[other] > gains[number] for other in numbers)
