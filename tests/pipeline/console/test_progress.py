"""What a person reads while a task trains: both runs on one line, a tenth of the epochs apart, nothing twice."""

from functools import partial
from typing import Any

from pipeline.console.progress import Progress, counted
from pipeline.tasks.kinds import TOP1, Measure
from pipeline.tasks.measure_text import metric_text


def row(epoch: int, **more: float) -> dict[str, Any]:
    return {"epoch": epoch, "train/loss": 1 / epoch, "images_per_second": 90.0, **more}


def percent(name: str, value: float) -> str:
    return metric_text((TOP1,), name, value)


def test_a_metric_has_its_own_unit() -> None:
    lines: list[str] = []
    error = Measure(name="mae", unit="px", higher_is_better=False)
    progress = Progress("acme-ages", ["selection"], 2, lines.append, text_of=partial(metric_text, (error,)))
    progress(0, [row(1, **{"val/mae": 0.213})])
    assert lines == ["acme-ages 1/2  selection loss 1.000 val/mae 0.213 px  90 images/s"]


def test_one_line_for_both_runs_at_every_tenth_of_the_epochs() -> None:
    lines: list[str] = []
    progress = Progress("vtab-dtd", ["selection", "final"], 20, lines.append, text_of=percent)
    for epoch in range(1, 21):
        scores = {"val/top1": 0.5} if epoch % 2 == 0 else {}
        progress(0, [row(epoch, **scores)])
        progress(1, [row(epoch, **({"test/top1": 0.25} if epoch == 20 else {}))])
    assert [line.split()[1] for line in lines] == [f"{epoch}/20" for epoch in range(2, 21, 2)]
    assert lines[0].startswith("vtab-dtd 2/20  selection loss 0.500 val/top1 50.0%  final loss 0.500  90 images/s")
    assert lines[-1].endswith("test/top1 25.0%  90 images/s")
    assert "left" in lines[1]


def test_runs_that_are_not_at_the_same_epoch_are_told_by_the_one_behind_with_their_latest_scores() -> None:
    lines: list[str] = []
    progress = Progress("vtab-dtd", ["selection", "final"], 20, lines.append, text_of=percent)
    for step in range(1, 26):
        progress(0, [row(min(step, 20), **({"val/top1": step / 100} if step % 2 == 0 else {}))])
        progress(1, [row(1 + int(0.8 * (step - 1)))])
    assert [line.split()[1] for line in lines] == [f"{epoch}/20" for epoch in range(2, 21, 2)]
    assert " val/top1 " in lines[0], "of the selection run's epoch before its last"


def test_a_number_of_workers_that_changes_is_told() -> None:
    lines: list[str] = []
    progress = Progress("vtab-dtd", ["final"], 2, lines.append, text_of=percent)
    progress(0, [row(1, num_workers=2)])
    progress(0, [row(2, num_workers=1)])
    assert [" by ".join(line.split(" by ")[1:]).split("  ")[0] for line in lines] == ["2 workers", "1 worker"]


def test_rows_that_come_again_are_not_told_again() -> None:
    lines: list[str] = []
    progress = Progress("vtab-dtd", ["final"], 3, lines.append, text_of=percent)
    progress(0, [row(1), row(2)])
    progress(0, [row(3)])
    progress(0, [row(1), row(2), row(3)])
    assert [line.split()[1] for line in lines] == ["2/3", "3/3"]


def test_one_is_told_as_one() -> None:
    assert [counted(number, "task") for number in (0, 1, 2, 1200)] == ["0 tasks", "1 task", "2 tasks", "1,200 tasks"]
