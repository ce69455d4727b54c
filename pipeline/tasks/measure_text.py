"""How a measure and its values are written for people, where `Measure.text` and `Measure.cell` are not enough."""

from __future__ import annotations

from pipeline.tasks.kinds import PERCENT, Measure


def spaced(measure: Measure, value: float, *, decimals: int = 1) -> str:
    """A value and its unit with a space between them: ``90.0 %``, ``0.213 px``.

    Args:
        measure: the measure of the value.
        value: the value in the measure's own unit.
        decimals: the number of decimals of a per cent. Other numbers have four significant digits.
    """
    return f"{100 * value:.{decimals}f} %" if measure.unit == PERCENT else measure.text(value)


def close(measure: Measure, value: float) -> str:
    """A value beside another that it may almost equal: ``62.50%``, ``0.213456 px``."""
    return f"{value:.2%}" if measure.unit == PERCENT else f"{value:.6g} {measure.unit}".rstrip()


def unit_text(measure: Measure) -> str:
    """The unit in words: ``per cent``, ``px``, or nothing for a plain number."""
    return "per cent" if measure.unit == PERCENT else measure.unit


def described(measure: Measure) -> str:
    """A measure in a sentence: ``mae in px; lower is better``."""
    unit = unit_text(measure)
    direction = "higher" if measure.higher_is_better else "lower"
    return f"{measure.name}{f' in {unit}' if unit else ''}; {direction} is better"


def results_text(measure: Measure, val: float | None, test: float) -> str:
    """The results of a task in a sentence: ``val 50.0%, test 62.5%``; without val where no run had one."""
    return ("" if val is None else f"val {measure.text(val)}, ") + f"test {measure.text(test)}"


def metric_text(measures: tuple[Measure, ...], name: str, value: float) -> str:
    """A logged metric's value, which the measure of that name writes, else a plain number.

    Args:
        measures: the measures of the task's kind.
        name: the name that is logged, such as ``val/mae``.
        value: the metric's value.
    """
    measure = measure_named(measures, name)
    return f"{value:.4g}" if measure is None else measure.text(value)


def measure_named(measures: tuple[Measure, ...], name: str) -> Measure | None:
    """The measure of a logged metric (``val/mae``); None where the kind has none of that name."""
    return next((one for one in measures if one.name == name.partition("/")[2]), None)
