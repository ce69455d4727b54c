"""The final table: what stands beside what, and which averages exist."""

import dataclasses
from typing import Any

import pytest

from pipeline.reports.rows import TaskRow, over_seeds
from pipeline.reports.table import averages, fanout_table, published_averages, search_tables
from pipeline.search.sampler import Outcome
from pipeline.tasks.catalogue import TASKS
from pipeline.tasks.kinds import TOP1, Measure


def row(task: str = "vtab-dtd", **changes: Any) -> TaskRow:
    known: dict[str, Any] = {
        "status": "done",
        "val": 0.76,
        "test": 0.75,
        "published": TASKS[task].published.get("HST-B"),
        "parameters": 270228,
        "images_per_second": 123.4,
        "seconds": 75.0,
        "version": 3,
        "champion": True,
    }
    return TaskRow.of(TASKS[task], **(known | changes))


MAE = Measure(name="mae", unit="years", higher_is_better=False)


def ages(**changes: Any) -> TaskRow:
    """A task of a user's own whose error is measured."""
    own: dict[str, Any] = {
        "task": "acme-ages",
        "group": "own",
        "measure": MAE,
        "val": 4.25,
        "test": 4.5,
        "published": None,
    }
    return dataclasses.replace(row(), **(own | changes))


def vtab(**changes: Any) -> list[TaskRow]:
    """All 19 full tasks, with the paper's results as if they were ours."""
    return [
        row(name, test=task.published["HST-B"] / 100, **changes)
        for name, task in TASKS.items()
        if name.startswith("vtab-")
    ]


def cells(table: str, task: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(task)]
    return line.split()


def test_a_doubtful_result_has_a_footnote() -> None:
    table = fanout_table([row(doubts=("val: 'dog' is predicted for all 24 images",)), row("vtab-svhn")])
    assert "[1] vtab-dtd: doubtful: val: 'dog' is predicted for all 24 images" in table
    assert "75.0 % [1]" in table or "75.0 [1]" in table
    assert "[1]" not in " ".join(cells(table, "vtab-svhn"))


def test_a_done_task_shows_everything() -> None:
    assert cells(fanout_table([row()]), "vtab-dtd") == (
        ["vtab-dtd", "natural", "76.0", "75.0", "75.2", "270,228", "123", "1", "min", "15", "s", "3*"]
    )


def test_what_time_means_in_a_pack_is_told_there_alone() -> None:
    note = "in a pack time is a task's part of the pack's, by images; images/s count by the clock"
    assert note in fanout_table([row()], packed=True).splitlines()
    assert note not in fanout_table([row()])


def test_a_subset_shows_no_published_number_but_why() -> None:
    table = fanout_table(
        [
            row(
                subset_reasons=(
                    "10 of 47 classes",
                    "300 of 1880 test images",
                )
            ),
            row("vtab-cifar100"),
        ]
    )
    assert cells(table, "vtab-dtd")[4:6] == ["-", "[1]"]
    assert "75.2" not in table
    assert "[1] no published number beside it: 10 of 47 classes; 300 of 1880 test images" in table.splitlines()
    assert cells(table, "vtab-cifar100")[4] == "76.7"


def test_a_subset_is_named_where_there_is_no_published_number_either() -> None:
    table = fanout_table([row(subset_reasons=("10 of 47 classes",), published=None)])
    assert cells(table, "vtab-dtd")[4:6] == ["-", "[1]"]
    assert "[1] a subset of the task's full data: 10 of 47 classes" in table.splitlines()


def test_equal_reasons_share_a_footnote() -> None:
    table = fanout_table([row(subset_reasons=("small",)), row("vtab-svhn", subset_reasons=("small",))])
    assert table.count("small") == 1
    assert cells(table, "vtab-svhn")[5] == "[1]"


def test_a_failed_task_shows_its_error_on_one_line_without_control_signs() -> None:
    error = "out of\n\x1b[31mmemory" + "x" * 999
    table = fanout_table([TaskRow.of(TASKS["vtab-dtd"], "failed", error=error)])
    assert cells(table, "vtab-dtd")[2:] == ["-", "failed", "[1]", "-", "-", "-", "-", "-"]
    (note,) = [line for line in table.splitlines() if line.startswith("[1]")]
    assert note.startswith("[1] vtab-dtd: out of  [31mmemory")
    assert len(note) < 320
    assert "mean" not in table


def test_a_task_that_is_not_registered_shows_its_results_and_enters_the_averages() -> None:
    waiting = [
        row(task, status="pending", version=None, champion=False, error="MLflow is away")
        for task in ("vtab-dtd", "vtab-svhn")
    ]
    table = fanout_table(waiting)
    assert cells(table, "vtab-dtd")[2:5] == ["76.0", "75.0", "75.2"]
    assert cells(table, "vtab-dtd")[-2:] == ["pending", "[1]"]
    assert table.count("MLflow is away") == 1
    assert averages(waiting) == {"mean_of_2": 0.75}


def test_columns_are_aligned() -> None:
    rows = [row(), row("vtab-oxford_flowers102", subset_reasons=("small",), seconds=7300.0, test=0.05)]
    header, rule, *lines = fanout_table(rows).splitlines()
    assert {len(header), len(rule), len(lines[0]), len(lines[1])} == {len(header)}
    assert lines[0].index("75.0") + 4 == lines[1].index("5.0") + 3 == header.index("test") + 4


def test_all_19_full_tasks_have_the_papers_two_averages() -> None:
    """76.12 and 78.25 are what the paper's Table 1 gives for HST-B."""
    assert {name: round(100 * value, 2) for name, value in averages(vtab()).items()} == {
        "mean19": 76.12,
        "group_mean": 78.25,
    }
    assert {name: round(value, 2) for name, value in published_averages(vtab()).items()} == {
        "mean19": 76.12,
        "group_mean": 78.25,
    }
    table = fanout_table(vtab())
    assert "mean of the 19 tasks: test 76.12 %, paper 76.12 %" in table
    assert "mean of the 3 groups: test 78.25 %, paper 78.25 %" in table
    assert "mean of 19" not in table


@pytest.mark.parametrize("change", [{"subset_reasons": ("small",)}, {"status": "failed", "test": None}])
def test_one_task_less_and_there_is_only_the_mean_of_what_ran(change: dict[str, Any]) -> None:
    rows = vtab()
    rows[4] = dataclasses.replace(rows[4], **change)
    done = [r.test for r in rows if r.test is not None]
    assert averages(rows) == {f"mean_of_{len(done)}": sum(done) / len(done)}
    assert published_averages(rows) == {}
    assert "paper" not in fanout_table(rows).split("mean of")[1]


def test_tasks_of_other_benchmarks_do_not_enter_the_19() -> None:
    demo = dataclasses.replace(row(), task="demo-digits", group="demo", published=None, test=0.01)
    assert averages([*vtab(), demo]) == averages(vtab())
    assert averages([row(), demo]) == {"mean_of_2": 0.38}


def test_nothing_done_has_no_average() -> None:
    assert averages([]) == averages([row(status="failed", test=None)]) == {}


def test_own_tasks_stand_in_the_table_and_in_no_average_of_the_benchmark() -> None:
    own = dataclasses.replace(row(), task="acme-photos", group="natural", test=0.01, published=None)
    assert averages([*vtab(), own]) == averages(vtab())
    assert published_averages([*vtab(), own]) == published_averages(vtab())
    assert cells(fanout_table([*vtab(), own]), "acme-photos")[3:5] == ["1.0", "-"]


def test_tasks_of_several_measures_share_a_table_and_have_no_mean() -> None:
    rows = [row(), ages(test_std=0.25, seeds=2)]
    table = fanout_table(rows)
    assert cells(table, "vtab-dtd")[2:4] == ["76.0", "75.0"]
    assert cells(table, "acme-ages")[2:7] == ["4.25", "4.5", "±", "0.25", "[1]"]
    assert "[1] acme-ages is measured by mae in years; lower is better" in table.splitlines()
    assert "no mean over tasks: they are measured by top1 (per cent), mae (years)" in table.splitlines()
    assert averages(rows) == {}


def test_tasks_of_one_other_measure_have_a_mean_in_its_unit() -> None:
    rows = [ages(), ages(task="acme-weights", test=5.5)]
    assert averages(rows) == {"mean_of_2": 5.0}
    assert "mean of 2 tasks: test 5 years" in fanout_table(rows).splitlines()


def test_the_19_keep_their_averages_beside_a_task_of_another_measure() -> None:
    assert averages([*vtab(), ages()]) == averages(vtab())


def test_a_row_has_mean_and_deviation_over_seeds_of_its_own_measure() -> None:
    scores = [{"test/mae": 4.0, "test/top1": 0.5}, {"test/mae": 5.0, "test/top1": 0.5}]
    found = over_seeds(scores, MAE)
    assert (found["val"], found["test"], found["seeds"]) == (None, 4.5, 2)
    assert found["test_std"] == pytest.approx(0.5**0.5)
    assert over_seeds([{"val/top1": 0.5, "test/top1": 0.25}], TOP1) == {
        "seeds": 1, "val": 0.5, "val_std": None, "test": 0.25, "test_std": None,
    }  # fmt: skip


def test_tasks_that_were_only_searched_show_their_trials_by_measure() -> None:
    values = (0.5, 0.25, 0.75)
    outcomes = tuple(Outcome(point={"drop_path": v}, value=v, whole=True, epochs=3, parameters=7) for v in values)
    searched = ages(status="searched", test=None, outcomes=outcomes)
    table = search_tables([searched, TaskRow.of(TASKS["vtab-dtd"], "failed", error="no data")])
    assert [line.split()[:2] for line in table.splitlines()[3:6]] == [["1*", "0.25"], ["0", "default"], ["2", "0.75"]]
    assert "* chosen: the lowest val of those that did their last epoch" in table.splitlines()
    assert "val is mae in years; lower is better" in table.splitlines()
    assert "trial 1 is chosen, of 3: val 0.25 years (the default's: 0.5 years): drop_path=0.25" in table.splitlines()
    assert table.splitlines()[-1] == "vtab-dtd: failed: no data"
