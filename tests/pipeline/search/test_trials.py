"""What a search tries, stops, keeps and chooses, without Ray: whatever the order, interruptions and number at once."""

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hst.randomness import python_generator
from pipeline.search.sampler import Outcome, Sampler
from pipeline.search.space import Choice, Range, Space
from pipeline.search.trials import Next, Record, Trial, Trials, common_registers, winner
from pipeline.tasks.kinds import TOP1, Measure

SPACE: Space = {"learning_rate": Range(low=1e-4, high=1e-2, log=True), "num_registers": Choice((0, 1, 2))}
DEFAULT = {"learning_rate": 1e-3, "num_registers": 1}
EPOCHS = 6


def value(point: dict[str, Any], epoch: int) -> float:
    """Any function of a point and an epoch; some trials fail at some time."""
    return python_generator(0, str(point), epoch).random() + epoch


def fails_after(point: dict[str, Any]) -> int:
    return python_generator(1, str(point)).choice([1, 3, 99, 99, 99])


MAE = Measure(name="mae", unit="px", higher_is_better=False)


def new_trials(algorithm: str = "random", count: int = 12, measure: Measure = TOP1, **options: Any) -> Trials:
    return Trials(
        default=DEFAULT,
        sampler=Sampler(SPACE, algorithm=algorithm, seed=0, task="t", measure=measure),
        count=count,
        epochs=EPOCHS,
        measure=measure,
        rungs=(2, 4),
        **options,
    )


def row(trial: Trial, epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "val/top1": value(trial.point, epoch)}


class Killed(Exception):
    pass


def run(trials: Trials, draw: random.Random, at_once: int, steps: int = 10**6) -> list[Outcome]:
    """Like a cluster: whoever is drawn does an epoch next."""
    running: dict[int, tuple[Trial, int]] = {}
    for _ in range(steps):
        while len(running) < at_once and isinstance(trial := trials.next(), Trial):
            running[trial.number] = (trial, 0)
        if not running:
            return trials.outcomes()
        number = draw.choice(sorted(running))
        trial, epoch = running.pop(number)
        if epoch == fails_after(trial.point) and number:
            trials.on_failed(number, "no number")
        elif not trials.on_rows(number, [row(trial, epoch + 1)], parameters=10, device_seconds=1.0):
            running[number] = (trial, epoch + 1)
    raise Killed


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
@settings(deadline=None, max_examples=40)
@given(
    draw=st.randoms(use_true_random=False), at_once=st.integers(1, 5), kills=st.lists(st.integers(1, 15), max_size=4)
)
def test_however_it_runs_and_is_killed_the_search_ends_the_same(
    algorithm: str, draw: random.Random, at_once: int, kills: list[int]
) -> None:
    expected = run(new_trials(algorithm), random.Random(0), at_once=1)
    kept: dict[int, Record] = {}

    def keep(record: Record) -> None:
        assert record.number not in kept, "a finished trial is not repeated"
        kept[record.number] = record

    def find(trial: Trial) -> Record | None:
        if (record := kept.get(trial.number)) is not None:
            assert record.point == trial.point
        return record

    for steps in [*kills, 10**6]:
        trials = new_trials(algorithm, find=find, keep=keep)
        try:
            outcomes = run(trials, draw, at_once, steps)
        except Killed:
            continue
    assert outcomes == expected
    assert winner(outcomes, TOP1) == winner(expected, TOP1)


def test_the_default_comes_first_and_goes_to_the_end() -> None:
    trials = new_trials()
    first = trials.next()
    assert first == Trial(number=0, point=DEFAULT)
    outcomes = run(new_trials(), random.Random(0), at_once=3)
    assert (outcomes[0].point, outcomes[0].whole, outcomes[0].epochs) == (DEFAULT, True, EPOCHS)
    assert any(not one.whole and one.value is not None for one in outcomes), "some were stopped"
    assert any(one.value is None for one in outcomes), "some failed"


def test_tpe_waits_for_the_trials_that_it_learns_from() -> None:
    trials = new_trials("optuna", count=12)
    begun = []
    while isinstance(trial := trials.next(), Trial):
        begun.append(trial)
    assert (len(begun), trial) == (8, Next.WAIT)
    for one in begun:
        trials.on_failed(one.number, "for the test")
    assert isinstance(trials.next(), Trial)


def test_a_trial_goes_on_where_it_cannot_be_judged_and_what_it_did_beyond_is_not_used() -> None:
    trials = new_trials(count=2)
    default, other = trials.next(), trials.next()
    assert isinstance(default, Trial)
    assert isinstance(other, Trial)
    for epoch in (1, 2, 3):
        assert not trials.on_rows(1, [{"epoch": epoch, "val/top1": 0.1 * epoch}])
    trials.on_rows(0, [{"epoch": epoch, "val/top1": 0.9} for epoch in range(1, EPOCHS + 1)])
    assert trials.on_rows(1, [{"epoch": 4, "val/top1": 1.0}]), "now it can"
    outcome = trials.outcomes()[1]
    assert (outcome.value, outcome.epochs, outcome.whole) == (0.2, 2, False)


def test_no_trial_begins_once_the_budget_is_spent_and_those_that_were_kept_still_count() -> None:
    kept: list[Record] = []
    trials = new_trials(budget_seconds=2.5, keep=kept.append)
    outcomes = run(trials, random.Random(0), at_once=1)
    assert len(outcomes) == 3, "a second a trial"
    again = new_trials(budget_seconds=1.0, find=lambda trial: next((r for r in kept if r.number == trial.number), None))
    assert run(again, random.Random(0), at_once=1) == outcomes
    assert again.found == 3


def test_outcomes_of_trials_that_run_are_not_given() -> None:
    trials = new_trials()
    trials.next()
    with pytest.raises(ValueError, match=r"trials \[0\] have not ended"):
        trials.outcomes()


BASE = Outcome(point={"num_registers": 1}, value=0.5, whole=True, epochs=6, parameters=100)


def outcome(**changes: Any) -> Outcome:
    registers = changes.pop("registers", 1)
    return dataclasses.replace(BASE, point={"num_registers": registers}, **changes)


def test_the_winner_has_the_highest_val_of_whole_trials_then_the_fewest_parameters_then_comes_first() -> None:
    assert winner([outcome(), outcome(value=0.6), outcome(value=0.9, whole=False), outcome(value=None)], TOP1) == 1
    assert winner([outcome(), outcome(parameters=99), outcome(parameters=99)], TOP1) == 1
    assert winner([outcome(value=None, whole=False)], TOP1) is None
    assert winner([outcome(value=0.9), outcome(registers=2)], TOP1, registers=2) == 1
    assert winner([outcome(value=0.9)], TOP1, registers=2) is None


def test_where_lower_is_better_the_winner_has_the_lowest_val() -> None:
    assert winner([outcome(), outcome(value=0.4), outcome(value=0.1, whole=False), outcome(value=0.6)], MAE) == 1
    assert winner([outcome(), outcome(parameters=99)], MAE) == 1


def test_where_lower_is_better_the_trials_with_high_values_are_stopped_and_outcomes_keep_the_true_values() -> None:
    trials = new_trials(count=3, measure=MAE)
    assert all(isinstance(trials.next(), Trial) for _ in range(3))
    trials.on_rows(0, [{"epoch": epoch, "val/mae": 0.5} for epoch in range(1, EPOCHS + 1)])
    assert trials.on_rows(1, [{"epoch": 2, "val/mae": 0.6}]), "stopped"
    assert not trials.on_rows(2, [{"epoch": 2, "val/mae": 0.4}])
    trials.on_rows(2, [{"epoch": epoch, "val/mae": 0.3} for epoch in range(3, EPOCHS + 1)])
    assert [(one.value, one.whole) for one in trials.outcomes()] == [(0.5, True), (0.6, False), (0.3, True)]


def test_common_registers_have_the_highest_mean_of_the_tasks_best() -> None:
    one = [outcome(value=0.9, registers=1), outcome(value=0.2, registers=1), outcome(value=0.6, registers=4)]
    two = [outcome(value=0.1, registers=1), outcome(value=0.6, registers=4), outcome(value=1.0, registers=2)]
    tasks = [(TOP1, one), (TOP1, two)]
    assert common_registers(tasks) == 4, "0.6 against 0.5; two registers have no trial in the first"
    assert common_registers([(TOP1, one)]) == 1
    assert common_registers([(TOP1, [outcome(registers=8), outcome(registers=2)])]) == 2
    assert common_registers([(TOP1, one), (TOP1, [outcome(registers=3)])]) is None
    assert common_registers([]) is None


def test_common_registers_follow_the_direction_of_the_measure() -> None:
    one = [outcome(value=0.9, registers=1), outcome(value=0.2, registers=1), outcome(value=0.6, registers=4)]
    assert common_registers([(MAE, one)]) == 1, "0.2 is its best"
    assert common_registers([(MAE, one[:1] + one[2:])]) == 4


def test_common_registers_of_tasks_with_several_measures_have_the_best_mean_place() -> None:
    accuracy = [outcome(value=value, registers=n) for n, value in ((1, 0.9), (2, 0.8), (4, 0.1))]
    errors = [outcome(value=value, registers=n) for n, value in ((1, 900.0), (2, 200.0), (4, 100.0))]
    # Places 0, 1, 2 and 2, 1, 0: equal, so the smallest; a mean of values would follow the large errors.
    assert common_registers([(TOP1, accuracy), (MAE, errors)]) == 1
    assert common_registers([(TOP1, accuracy), (TOP1, accuracy), (MAE, errors)]) == 1
    assert common_registers([(TOP1, accuracy), (MAE, errors), (MAE, errors)]) == 4


def test_a_trial_that_is_found_is_not_run() -> None:
    whole = [{"epoch": epoch, "val/top1": 0.5} for epoch in range(1, EPOCHS + 1)]
    trials = new_trials(
        count=3, find=lambda trial: Record(number=trial.number, point=trial.point, rows=whole) if trial.number else None
    )
    assert trials.next() == Trial(number=0, point=DEFAULT)
    assert trials.next() is Next.DONE
    assert trials.found == 2
