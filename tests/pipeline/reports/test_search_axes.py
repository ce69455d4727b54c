"""Where values lie on the upright axes of a search's picture."""

from typing import Any

import pytest

from pipeline.reports.search_axes import OUTSIDE, place, spread
from pipeline.search.space import Choice, Range


def test_choices_are_evenly_spaced_with_the_smallest_lowest() -> None:
    axis = place(Choice((2, 1, 16)), [16, 1, 2, 1])
    assert axis.heights == pytest.approx([5 / 6, 1 / 6, 1 / 2, 1 / 6])
    assert axis.ticks == [(pytest.approx(1 / 6), "1"), (1 / 2, "2"), (pytest.approx(5 / 6), "16")]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (([8, 8], [2, 2], [4, 4]), ["2,2", "4,4", "8,8"]),
        (("conv", None, True), ["conv", "none", "true"]),
        ((False, True), ["false", "true"]),
        ((0.1,), ["0.1"]),
    ],
)
def test_choices_of_any_kind_are_labelled(values: tuple[Any, ...], labels: list[str]) -> None:
    assert [text for _, text in place(Choice(values), values).ticks] == labels


def test_a_tuple_is_the_list_of_its_values() -> None:
    assert place(Choice(([1, 2], [3, 4])), [(3, 4)]).heights == [0.75]


def test_a_range_is_linear_from_end_to_end() -> None:
    axis = place(Range(low=1.0, high=3.0, log=False), [1.0, 1.5, 3])
    assert axis.heights == pytest.approx([0, 0.25, 1])
    assert {text: height for height, text in axis.ticks} == pytest.approx(
        {"1": 0, "1.5": 0.25, "2": 0.5, "2.5": 0.75, "3": 1}
    )


def test_a_logarithmic_range_has_its_ends_and_the_powers_of_ten_between() -> None:
    axis = place(Range(low=5e-5, high=5e-1, log=True), [5e-5, 5e-3, 5e-1])
    assert axis.heights == pytest.approx([0, 0.5, 1])
    assert [text for _, text in axis.ticks] == ["5e-05", "0.0001", "0.001", "0.01", "0.1", "0.5"]
    assert axis.ticks[2][0] == pytest.approx(0.25 * 1.30103, abs=1e-5)


def test_a_tick_that_would_touch_an_end_is_left_out() -> None:
    assert [text for _, text in place(Range(low=9.9e-4, high=0.0101, log=True), []).ticks] == ["0.00099", "0.0101"]


def test_a_range_of_whole_numbers_has_whole_ticks() -> None:
    assert [text for _, text in place(Range(low=1, high=12, log=False, whole=True), [4]).ticks] == [
        "1",
        "3",
        "6",
        "9",
        "12",
    ]


def test_values_outside_a_range_have_places_of_their_own() -> None:
    axis = place(Range(low=1e-3, high=1e-1, log=True), [0.0, 1e-2, 0.5, None, 0.5])
    zero, inside, above, none, again = axis.heights
    assert inside == pytest.approx(0.5)
    assert above == again == 1 + OUTSIDE
    assert sorted((zero, none)) == [-2 * OUTSIDE, -OUTSIDE]
    labels = dict(axis.ticks)
    assert (labels[zero], labels[above], labels[none]) == ("0", "0.5", "none")


def test_a_value_that_is_no_choice_becomes_one() -> None:
    axis = place(Choice((1, 4)), [1, 2, 4])
    assert [text for _, text in axis.ticks] == ["1", "2", "4"]
    assert axis.heights == pytest.approx([1 / 6, 1 / 2, 5 / 6])


@pytest.mark.parametrize("count", [2, 10, 100])
def test_equal_values_are_drawn_apart_but_stay_nearest_to_their_own(count: int) -> None:
    heights = [0.125, 0.375] * count
    apart = spread(heights, range(2 * count))
    assert len(set(apart)) == 2 * count
    assert all(abs(new - old) < 0.125 for new, old in zip(apart, heights, strict=True))


def test_equal_values_keep_the_given_order_and_lone_ones_their_place() -> None:
    lowest, alone, middle, highest = 2, 1, 3, 0
    apart = spread([0.5, 0.9, 0.5, 0.5], [lowest, alone, middle, highest])
    assert apart[lowest] < apart[middle] < apart[highest]
    assert apart[middle] == pytest.approx(0.5)
    assert apart[alone] == 0.9


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_values_at_an_end_stay_on_the_axis(level: float) -> None:
    apart = spread([level, level, level], range(3))
    assert len(set(apart)) == 3
    assert all(0 <= height <= 1 for height in apart)
