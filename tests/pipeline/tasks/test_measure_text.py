"""Measures and values as people read them."""

import pytest

from pipeline.tasks.kinds import TOP1, Measure
from pipeline.tasks.measure_text import close, described, metric_text, results_text, spaced

MAE = Measure(name="mae", unit="px", higher_is_better=False)


@pytest.mark.parametrize(("measure", "text"), [(TOP1, "21.3 %"), (MAE, "0.213 px")])
def test_a_unit_stands_apart(measure: Measure, text: str) -> None:
    assert spaced(measure, 0.213) == text


def test_per_cents_that_are_compared_have_two_decimals() -> None:
    assert close(TOP1, 0.625) == "62.50%"
    assert spaced(TOP1, 0.76123, decimals=2) == "76.12 %"
    assert close(MAE, 0.213) == "0.213 px"


def test_a_measure_says_its_unit_and_its_direction() -> None:
    assert described(MAE) == "mae in px; lower is better"
    assert described(TOP1) == "top1 in per cent; higher is better"
    assert described(Measure(name="dice", unit="")) == "dice; higher is better"


def test_results_are_a_part_of_a_sentence() -> None:
    assert results_text(TOP1, 0.5, 0.625) == "val 50.0%, test 62.5%"
    assert results_text(MAE, None, 0.213) == "test 0.213 px"


def test_a_logged_metric_is_written_by_the_measure_of_its_name() -> None:
    assert metric_text((TOP1,), "val/top1", 0.5) == "50.0%"
    assert metric_text((MAE,), "val/mae", 0.213) == "0.213 px"
    assert metric_text((MAE,), "val/other", 0.21345678) == "0.2135"
