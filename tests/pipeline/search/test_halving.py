"""The rule that stops trials: of the seed alone, in whatever order results arrive."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.search.halving import Course, Verdict, rungs, verdicts

AT = (2, 5)


def course(*values: float, ended: bool = True) -> Course:
    """Validated after every epoch."""
    return Course(gains=dict(enumerate(values, start=1)), ended=ended)


def whole(value: float) -> Course:
    return course(*[value] * 6)


def stops(courses: list[Course]) -> list[int | None]:
    return [verdict.stops_at for verdict in verdicts(courses, AT)]


def test_rungs_are_a_ninth_and_a_third_where_trials_are_validated_after_the_warm_up() -> None:
    assert rungs(15, every=1, warmup_epochs=1, steps=15) == (2, 5)
    assert rungs(100, every=10, warmup_epochs=10, steps=15) == (20, 40)
    assert rungs(40, every=4, warmup_epochs=4, steps=15) == (8, 16)
    assert rungs(9, every=1, warmup_epochs=1, steps=15) == (3,)
    assert rungs(1, every=1, warmup_epochs=0, steps=15) == ()


def test_no_trial_is_judged_within_its_first_steps() -> None:
    assert rungs(15, every=1, warmup_epochs=1, steps=10) == (2, 5)
    assert rungs(15, every=1, warmup_epochs=1, steps=9) == (5,)
    assert rungs(15, every=1, warmup_epochs=1, steps=2) == ()


def test_the_first_trial_is_never_stopped_and_a_worse_second_one_is() -> None:
    assert stops([whole(0.1), whole(0.2)]) == [None, None]
    assert stops([whole(0.2), whole(0.1)]) == [None, 2]
    assert stops([whole(0.2), whole(0.2)]) == [None, None], "as good is good enough"


def test_the_best_third_goes_on() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    # Of 0.1 to 0.6, two thirds lie below 0.433.
    assert stops([*map(whole, values[:6]), whole(0.43)])[-1] == 2
    assert stops([*map(whole, values[:6]), whole(0.44)])[-1] is None


def test_who_was_stopped_before_is_not_compared_with_at_the_next_rung() -> None:
    falls_back = course(0.5, 0.5, 0.1, 0.1, 0.1, 0.1)
    stopped = course(0.4, 0.4, 0.9, 0.9, 0.9, 0.9)  # went on beyond its last rung, before that was known
    assert stops([falls_back, stopped, course(0.6, 0.6, 0.3, 0.3, 0.3, 0.3)]) == [None, 2, None]


def test_who_failed_counts_where_it_was_and_nowhere_else() -> None:
    failed = course(0.9, 0.9)
    assert stops([whole(0.1), failed, whole(0.5)]) == [None, None, 2]
    assert stops([whole(0.1), course(0.9), whole(0.5)]) == [None, None, None]
    assert stops([whole(0.1), Course(ended=True), whole(0.05)]) == [None, None, 2]


def test_a_trial_waits_for_those_of_smaller_number_and_for_no_other() -> None:
    running = course(0.5, ended=False)
    assert verdicts([running, whole(0.1)], AT)[1] == Verdict(final=False)
    assert verdicts([whole(0.1), running], AT) == [Verdict(), Verdict()]
    assert verdicts([whole(0.5), Course(), whole(0.1)], AT)[2] == Verdict(final=False)


VALUES = st.lists(st.integers(0, 3).map(float), min_size=6, max_size=6)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_whatever_the_order_of_arrival_each_verdict_once_final_stays_and_the_outcome_is_the_same(
    runs: list[list[float]], draw: random.Random
) -> None:
    outcome = verdicts([course(*values) for values in runs], AT)
    done = [0] * len(runs)
    final: dict[tuple[int, int], Verdict] = {}
    while any(n < 6 for n in done):
        i = draw.choice([i for i, n in enumerate(done) if n < 6])
        done[i] += 1
        seen = [course(*values[:n], ended=n == 6) for values, n in zip(runs, done, strict=True)]
        for j, verdict in enumerate(verdicts(seen, AT)):
            if verdict.stops_at is not None:
                assert outcome[j].stops_at == verdict.stops_at
            if verdict.final:
                stopped = outcome[j].stops_at
                assert verdict.stops_at == (stopped if stopped is not None and stopped <= done[j] else None)
                final[j, done[j]] = verdict
    assert final


@settings(deadline=None)
@given(st.permutations(range(4)), st.lists(VALUES, min_size=4, max_size=4))
def test_a_trial_that_is_stopped_as_soon_as_that_is_known_has_the_same_verdict(
    order: list[int], runs: list[list[float]]
) -> None:
    outcome = stops([course(*values) for values in runs])
    seen = [Course() for _ in runs]
    for i, epochs in itertools.product(order, range(1, 7)):
        if verdicts(seen, AT)[i].stops_at is None:
            seen[i] = course(*runs[i][:epochs], ended=epochs == 6)
    seen = [Course(gains=one.gains, ended=True) for one in seen]
    assert stops(seen) == outcome


@pytest.mark.parametrize("at", [(), (2, 5)])
def test_no_trials_have_no_verdicts(at: tuple[int, ...]) -> None:
    assert verdicts([], at) == []
