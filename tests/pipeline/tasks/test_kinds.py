"""Measures of tasks, in numbers and in words."""

import pytest

from pipeline.tasks.kinds import MEASURES, TOP1, Measure, measure_of

ERROR = Measure(name="mae", unit="px", higher_is_better=False)


def test_a_larger_gain_is_the_better_result_in_either_direction() -> None:
    assert TOP1.gain(0.9) > TOP1.gain(0.8)
    assert ERROR.gain(0.1) > ERROR.gain(0.2)


def test_fractions_are_shown_as_per_cent_and_other_numbers_as_they_are() -> None:
    assert (TOP1.text(0.9), TOP1.cell(0.9), TOP1.cell(0.9, 0.012)) == ("90.0%", "90.0", "90.0 ± 1.2")
    assert (ERROR.text(0.21345), ERROR.cell(12.5), ERROR.cell(12.5, 0.5)) == ("0.2135 px", "12.5", "12.5 ± 0.5")
    assert Measure(name="count", unit="").text(3.0) == "3"
    assert TOP1.cell(None) == "-"


def test_a_measure_survives_its_journey_through_json() -> None:
    assert Measure.from_dict(ERROR.to_dict()) == ERROR


def test_a_kinds_first_measure_is_its_default() -> None:
    assert measure_of("classification") == measure_of("classification", "top1") == MEASURES["classification"][0]


def test_an_unknown_kind_or_metric_is_named_with_what_is_possible() -> None:
    with pytest.raises(ValueError, match=r"kind 'detektion': expected one of classification"):
        measure_of("detektion")
    with pytest.raises(ValueError, match=r"metric 'top5': a classification task is measured by one of top1"):
        measure_of("classification", "top5")
