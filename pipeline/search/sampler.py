"""Which point of the space each trial tries: drawn at random, or by Optuna's TPE from the trials before.

Point n is a function of the space, the algorithm, the seed and the outcomes of the trials of earlier batches, however
many trials run at once and in whatever order they end. Nothing is stored here: after a restart the outcomes come again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from hst.randomness import derive_seed, python_generator
from pipeline.search.space import Choice, Point, Range, Space
from pipeline.tasks.kinds import Measure

ALGORITHMS = {
    "random": "every trial is drawn by itself",
    "optuna": "TPE (Optuna): where the trials before were good",
    "optuna-pareto": "TPE for two aims, val and few parameters: the picture then shows more of the front between them",
}
STARTUP = 8
"""Trials before TPE looks at outcomes; the default is one of them."""
BATCH = 4
"""Number of trials that TPE proposes from the same outcomes. They may all run at once."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    point: Point
    value: float | None
    """The measure's true value at the last epoch that counts; None where the trial failed."""
    whole: bool
    """Whether the trial did its last epoch, and was not stopped before."""
    epochs: int
    """The epoch after which the trial ended."""
    parameters: int
    """Trainable parameters; 0 where the trial failed before its model was built."""


class Sampler:
    """Points by number, from 1 on, asked for in order; point 0 is the default.

    Args:
        space: what may change.
        algorithm: a key of ALGORITHMS.
        seed: the seed of the draws.
        task: the task's name, which is part of the draws' key.
        measure: the measure of the outcomes' values. Optuna maximises their gains.
        registers: where several tasks search one number of registers, the values to try, trial by trial.
    """

    def __init__(
        self,
        space: Space,
        *,
        algorithm: str,
        seed: int,
        task: str,
        measure: Measure,
        registers: Sequence[int] | None = None,
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"search algorithm {algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
        self._space, self._measure = space, measure
        self._learns = algorithm != "random"
        self._pareto = algorithm == "optuna-pareto"
        self._registers = registers
        seed = derive_seed(seed, task, "search") % 2**32
        self._base: Any = TPESampler(seed=seed, n_startup_trials=STARTUP) if self._learns else RandomSampler(seed)
        self._study = _study(self._pareto, self._base)
        self._distributions = {name: _distribution(part) for name, part in space.items()}
        self._asked: list[Any] = []
        self._told = 0

    def needs(self, number: int) -> int:
        """How many of the first trials must have ended before this trial's point is known."""
        if not self._learns or number < STARTUP:
            return 0
        return number - (number - STARTUP) % BATCH

    def point(self, number: int, outcomes: Sequence[Outcome]) -> Point:
        """The point of trial ``number``, which is one more than the last that was asked for.

        Args:
            number: the trial's number, from 1.
            outcomes: the outcomes of trials 0, 1, ...: at least the first ``needs(number)``. Only those are used.
        """
        if number != len(self._asked) + 1:
            raise ValueError(f"trial {number} was asked for after trial {len(self._asked)}")
        for outcome in outcomes[self._told : self.needs(number)]:
            self._tell(outcome)
        if self._registers is not None:
            fixed = {"num_registers": _drawn(self._space["num_registers"], self._registers[number])}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.sampler = PartialFixedSampler(fixed, self._base)
        trial = self._study.ask(self._distributions)
        self._asked.append(trial)
        return {name: _value(self._space[name], trial.params[name]) for name in self._space}

    def _tell(self, outcome: Outcome) -> None:
        number, self._told = self._told, self._told + 1
        if number == 0:  # the default's point, which was not asked for
            aims = self._aims(outcome) if outcome.value is not None else []
            if aims and (frozen := _frozen(outcome.point, aims, self._space, self._distributions)) is not None:
                self._study.add_trial(frozen)
            return
        trial = self._asked[number - 1]
        if outcome.value is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif self._pareto or outcome.whole:  # a study with two aims has no pruned trials
            self._study.tell(trial, self._aims(outcome))
        else:
            trial.report(self._measure.gain(outcome.value), 0)
            self._study.tell(trial, state=TrialState.PRUNED)

    def _aims(self, outcome: Outcome) -> list[float]:
        """The number that Optuna maximises and, with two aims, the one that it minimises."""
        assert outcome.value is not None
        gain = self._measure.gain(outcome.value)
        return [gain, float(outcome.parameters)] if self._pareto else [gain]


def importance(space: Space, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Each field's share, 0 to 1, of what the outcomes differ by (fANOVA), the largest first.

    All trials that did not fail count, also those that were stopped, with their last value. The result is empty where
    there are fewer than four, or all are equal. The direction of the measure plays no part: shares are of a variance.
    """
    study = _study(False, RandomSampler(0))
    distributions = {name: _distribution(part) for name, part in space.items()}
    values = set()
    for outcome in outcomes:
        if outcome.value is None:
            continue
        if (frozen := _frozen(outcome.point, [outcome.value], space, distributions)) is not None:
            study.add_trial(frozen)
            values.add(outcome.value)
    if len(study.trials) < 4 or len(values) < 2:
        return {}
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in shares.items()}


def register_order(seed: int, values: Sequence[int], count: int) -> list[int]:
    """One of the values for each trial, in the same order for all tasks; every value comes before one comes again."""
    order: list[int] = []
    while len(order) < count:
        order += python_generator(seed, "search", "registers", len(order)).sample(list(values), len(values))
    return order[:count]


def _study(pareto: bool, sampler: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["maximize", "minimize"] if pareto else ["maximize"], sampler=sampler)


def _distribution(part: Choice | Range) -> BaseDistribution:
    if isinstance(part, Choice):  # by their places, since Optuna takes no lists as choices
        return CategoricalDistribution(range(len(part.values)))
    if part.whole:
        return IntDistribution(int(part.low), int(part.high), log=part.log)
    return FloatDistribution(part.low, part.high, log=part.log)


def _value(part: Choice | Range, drawn: Any) -> Any:
    """A field's value for what Optuna has drawn; numbers get three digits, which people can read and type."""
    if isinstance(part, Choice):
        return part.values[drawn]
    return drawn if part.whole else min(max(float(f"{drawn:.3g}"), part.low), part.high)


def _drawn(part: Choice | Range, value: Any) -> Any:
    """The inverse of `_value`. Raises ValueError for a value outside the space."""
    if isinstance(part, Choice):
        return part.values.index(value)
    if value is None or not part.low <= value <= part.high:
        raise ValueError(f"{value} lies outside {part.low} to {part.high}")
    return value


def _frozen(
    point: Point, values: list[float], space: Space, distributions: dict[str, BaseDistribution]
) -> FrozenTrial | None:
    """An ended trial for Optuna; None where its point lies outside the space."""
    try:
        params = {name: _drawn(part, point[name]) for name, part in space.items()}
    except ValueError:
        return None
    return create_trial(params=params, distributions=distributions, values=values)
