"""The trials of one search: what is tried next, when a trial is stopped, and what has come of all of them.

Knows no Ray: it is asked for the next trial and told of rows, by whatever runs trials. What has ended is kept, and
found again, by functions that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pipeline.search.halving import Course, Verdict, verdicts
from pipeline.search.sampler import Outcome, Sampler
from pipeline.search.space import Point

Row = dict[str, Any]


class Next(Enum):
    """What there is instead of a next trial."""

    WAIT = "the next point depends on trials that have not ended"
    DONE = "every trial has begun"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One to be run."""

    number: int
    point: Point


@dataclass(kw_only=True)
class Record:
    """A trial that has ended, as it is kept."""

    number: int
    point: Point
    rows: list[Row]
    """One an epoch; some beyond the epoch that counts as its last, where that was not known in time."""
    failed: str | None = None
    """Why it has no result."""
    parameters: int = 0
    device_seconds: float = 0.0
    images_per_second: float = 0.0


@dataclass(kw_only=True)
class _Running:
    point: Point
    rows: dict[int, Row] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Trials:
    """Those of one search, by number; 0 is the default's point.

    Args:
        default: the point of trial 0.
        sampler: of the others.
        count: how many at most.
        epochs: of a whole trial.
        objective: the name of the value in a row, as in ``val/top1``; higher is better.
        rungs: of `pipeline.search.halving`; none stops no trial.
        budget_seconds: once the trials that have ended took so many device-seconds, no other is begun.
        find: the record of an earlier run of this search for a trial, or None.
        keep: told of each record that is new.
    """

    def __init__(
        self,
        *,
        default: Point,
        sampler: Sampler,
        count: int,
        epochs: int,
        objective: str,
        rungs: Sequence[int] = (),
        budget_seconds: float | None = None,
        find: Callable[[Trial], Record | None] = lambda trial: None,
        keep: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._default, self._sampler = default, sampler
        self._count, self._epochs, self._objective, self._rungs = count, epochs, objective, rungs
        self._budget, self._find, self._keep = budget_seconds, find, keep
        self._begun = 0
        self._waiting: Trial | None = None
        """Its point is drawn, and it is not begun."""
        self._running: dict[int, _Running] = {}
        self.records: dict[int, Record] = {}
        """Those that have ended."""
        self.found = 0
        """How many of them were found and not run."""

    def next(self) -> Trial | Next:
        """The next trial to run; those that are found are passed over."""
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
        """New rows of a running trial, and fields of its record. Whether it is to be stopped now, or has ended."""
        running = self._running[number]
        running.rows |= {int(row["epoch"]): row for row in rows}
        running.facts |= facts
        if self._epochs in running.rows or self._is_stopped(number):
            self._end(number)
            return True
        return False

    def on_failed(self, number: int, reason: str) -> None:
        """A running trial has no result, and would not have one if it was run again."""
        self._end(number, failed=reason)

    def outcomes(self) -> list[Outcome]:
        """Of all trials that have begun, in order; to be asked when every one of them has ended."""
        if self._running:
            raise ValueError(f"trials {sorted(self._running)} have not ended")
        return self._ended_first()

    def _ended_first(self) -> list[Outcome]:
        """Of trials 0, 1, ... up to the first that has not ended."""
        ended: list[Record] = []
        while len(ended) in self.records:
            ended.append(self.records[len(ended)])
        found = verdicts([self._course(number) for number in range(len(ended))], self._rungs)
        return [self._outcome(record, verdict) for record, verdict in zip(ended, found, strict=True)]

    def _outcome(self, record: Record, verdict: Verdict) -> Outcome:
        """What counts of a record."""
        values = self._values(record.rows)
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
            return Course(values=self._values(self.records[number].rows), ended=True)
        if number in self._running:
            return Course(values=self._values(self._running[number].rows.values()))
        return Course()

    def _values(self, rows: Any) -> dict[int, float]:
        return {int(row["epoch"]): float(row[self._objective]) for row in rows if self._objective in row}

    def _end(self, number: int, failed: str | None = None) -> None:
        running = self._running.pop(number)
        rows = [running.rows[epoch] for epoch in sorted(running.rows)]
        record = Record(number=number, point=running.point, rows=rows, failed=failed, **running.facts)
        self.records[number] = record
        self._keep(record)

    def _spent(self) -> float:
        return sum(record.device_seconds for record in self.records.values())


def winner(outcomes: Sequence[Outcome], registers: int | None = None) -> int | None:
    """The number of the best trial of those that did their last epoch: the highest value, then the fewest parameters.

    Args:
        outcomes: of all trials.
        registers: if given, of the trials with so many registers alone.

    Returns:
        None where there is none.
    """
    whole = [
        (-outcome.value, outcome.parameters, number)
        for number, outcome in enumerate(outcomes)
        if outcome.whole and outcome.value is not None
        if registers is None or outcome.point.get("num_registers") == registers
    ]
    return min(whole)[2] if whole else None


def common_registers(by_task: Sequence[Sequence[Outcome]]) -> int | None:
    """The number of registers with the highest mean, over tasks, of the best value; None where no number has one in
    every task. Of equal ones the smallest."""
    best: dict[int, list[float]] = {}
    for outcomes in by_task:
        values: dict[int, float] = {}
        for outcome in outcomes:
            if outcome.whole and outcome.value is not None:
                number = outcome.point["num_registers"]
                values[number] = max(values.get(number, outcome.value), outcome.value)
        for number, value in values.items():
            best.setdefault(number, []).append(value)
    means = {number: sum(values) / len(values) for number, values in best.items() if len(values) == len(by_task)}
    return min(means, key=lambda number: (-means[number], number), default=None)
