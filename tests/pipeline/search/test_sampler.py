"""Points are a function of the seed and of outcomes of earlier batches."""

import pytest

from hst.config import HSNConfig
from pipeline.search.sampler import (
    ALGORITHMS,
    BATCH,
    STARTUP,
    Outcome,
    Sampler,
    importance,
    register_order,
)
from pipeline.search.space import Choice, Point, Range, Space, default_space, point_of
from pipeline.tasks.kinds import TOP1, Measure
from pipeline.tasks.recipe import Recipe

HSN = HSNConfig().resolve(12)
SPACE = default_space(HSN, 12)
DEFAULT = point_of(Recipe(), HSN, SPACE)


def outcome(point: Point, value: float | None = None, *, whole: bool = True) -> Outcome:
    return Outcome(point=point, value=value, whole=whole, epochs=5, parameters=1000 * (1 + point["num_registers"]))


def quality(point: Point) -> float:
    """Best with a small learning rate; the rest matters little."""
    return float(1 - 50 * point["learning_rate"] + 0.001 * point["num_registers"])


MAE = Measure(name="mae", unit="px", higher_is_better=False)


def searched(
    algorithm: str, count: int, seed: int = 0, task: str = "t", space: Space = SPACE, measure: Measure = TOP1
) -> list[Point]:
    """Points of a search whose outcomes are as good as `quality` says, whatever the measure."""
    sampler = Sampler(space, algorithm=algorithm, seed=seed, task=task, measure=measure)
    outcomes = [outcome(DEFAULT, measure.gain(quality(DEFAULT)))]
    for number in range(1, count):
        point = sampler.point(number, outcomes)
        whole = number % 3 > 0
        outcomes.append(outcome(point, None if number % 5 == 4 else measure.gain(quality(point)), whole=whole))
    return [one.point for one in outcomes]


def test_random_points_are_a_function_of_seed_and_task_and_more_trials_change_none() -> None:
    points = searched("random", 12)
    assert searched("random", 20)[:12] == points
    assert searched("random", 12, seed=1) != points
    assert searched("random", 12, task="u") != points


@pytest.mark.parametrize("algorithm", ["optuna", "optuna-pareto"])
def test_tpe_learns_from_outcomes_and_is_repeatable(algorithm: str) -> None:
    points = searched(algorithm, 40)
    assert searched(algorithm, 40) == points
    early = [point["learning_rate"] for point in points[1:STARTUP]]
    late = [point["learning_rate"] for point in points[-20:]]
    assert sum(late) / len(late) < sum(early) / len(early)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_where_lower_is_better_the_same_points_are_tried_as_where_the_opposite_value_is_higher(algorithm: str) -> None:
    assert searched(algorithm, 30, measure=MAE) == searched(algorithm, 30)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_point_depends_on_the_outcomes_it_needs_and_on_no_other(algorithm: str) -> None:
    count = STARTUP + BATCH + 2
    outcomes: list[Outcome] = [outcome(DEFAULT, 0.5)]
    ahead = Sampler(SPACE, algorithm=algorithm, seed=0, task="t", measure=TOP1)
    behind = Sampler(SPACE, algorithm=algorithm, seed=0, task="t", measure=TOP1)
    for number in range(1, count):
        point = ahead.point(number, outcomes)
        assert behind.point(number, outcomes[: behind.needs(number)]) == point
        outcomes.append(outcome(point, quality(point)))
    assert [ahead.needs(n) for n in (1, STARTUP - 1)] == [0, 0]
    if algorithm != "random":
        assert [ahead.needs(STARTUP + n) for n in range(BATCH + 1)] == [STARTUP] * BATCH + [STARTUP + BATCH]


def test_points_lie_in_the_space_with_numbers_of_three_digits() -> None:
    space: Space = {
        "learning_rate": Range(low=1e-4, high=1e-2, log=True),
        "num_registers": Range(low=2, high=5, log=False, whole=True),
        "widths": Choice(([16, 24, 32, 36], [32, 48, 64, 72])),
        "clip_norm": Choice((None, 1.0)),
    }
    points = searched("random", 60, space=space)[1:]
    for point in points:
        assert 1e-4 <= point["learning_rate"] <= 1e-2
        assert float(f"{point['learning_rate']:.3g}") == point["learning_rate"]
    assert {point["num_registers"] for point in points} == {2, 3, 4, 5}
    assert {tuple(point["widths"]) for point in points} == {(16, 24, 32, 36), (32, 48, 64, 72)}
    assert {point["clip_norm"] for point in points} == {None, 1.0}


def test_points_are_asked_for_in_order() -> None:
    with pytest.raises(ValueError, match="trial 2 was asked for after trial 0"):
        Sampler(SPACE, algorithm="random", seed=0, task="t", measure=TOP1).point(2, [])
    with pytest.raises(ValueError, match="expected one of random, optuna"):
        Sampler(SPACE, algorithm="grid", seed=0, task="t", measure=TOP1)


def test_several_tasks_try_the_same_registers_each_as_often_as_any_other() -> None:
    values = (0, 1, 2)
    order = register_order(0, values, 7)
    assert sorted(order[:3]) == sorted(order[3:6]) == [0, 1, 2]
    assert register_order(0, values, 4) == order[:4]
    for task in ("a", "b"):
        sampler = Sampler(SPACE, algorithm="optuna", seed=0, task=task, measure=TOP1, registers=order)
        assert [sampler.point(n, [])["num_registers"] for n in range(1, 7)] == order[1:]


def test_importance_names_what_matters() -> None:
    points = searched("random", 30)
    shares = importance(SPACE, [outcome(point, quality(point)) for point in points])
    assert next(iter(shares)) == "learning_rate"
    assert shares["learning_rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_too_little_is_none() -> None:
    points = searched("random", 5)
    assert importance(SPACE, [outcome(point, 0.5) for point in points]) == {}
    assert importance(SPACE, [outcome(point, quality(point)) for point in points[:3]]) == {}
    assert importance(SPACE, [outcome(point) for point in points]) == {}
