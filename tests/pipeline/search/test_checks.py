"""What is wrong with a search is told before anything starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hst.backbone import load_backbone
from hst.config import HSNConfig
from pipeline.search.checks import plan_search, read_search
from pipeline.search.plan import SearchOptions
from pipeline.search.report import chosen_line, command_line
from pipeline.search.sampler import Outcome
from pipeline.tasks.kinds import TOP1
from pipeline.tasks.recipe import Recipe

ALL_FIXED = """
learning_rate = 1e-3
weight_decay = 1e-4
drop_path = 0.1
widths = "recipe"
depths = "recipe"
num_registers = 2
"""


def faults(text: str, fixed: set[str], tmp_path: Path) -> list[str]:
    file = tmp_path / "space.toml"
    file.write_text(text)
    options = SearchOptions(trials=3, space=str(file))
    given, found = read_search(options, 1)
    assert found == []
    backbone = load_backbone("hst_vit_micro_patch8_64", "random")
    return plan_search(options, given, fixed, Recipe(), HSNConfig().resolve(backbone.depth), backbone)[1]


def test_a_space_in_which_nothing_is_left_to_search_is_refused(tmp_path: Path) -> None:
    expected = ["search space: every field is fixed; nothing is left to search"]
    assert faults(ALL_FIXED, set(), tmp_path) == expected
    assert faults(ALL_FIXED.replace("num_registers = 2", "num_registers = [1, 2]"), set(), tmp_path) == []


def test_a_field_of_the_file_that_set_fixes_is_named(tmp_path: Path) -> None:
    (fault,) = faults("num_registers = [0, 1, 2]\n", {"num_registers", "epochs"}, tmp_path)
    assert fault.endswith("space.toml: num_registers is fixed by --set; say it in one of the two places")


def test_numbers_are_refused_under_the_names_that_the_job_gives_them() -> None:
    options = SearchOptions(trials=0, epochs=0)
    found = read_search(options, 0, trials_option="--trials")[1]
    assert found == [
        "--seeds 0: expected at least 1",
        "--trials 0: expected at least 1 trial",
        "--search-epochs 0: expected a number above 0",
    ]
    assert "--search 0: expected at least 1 trial" in read_search(options, 1)[1]


def test_a_file_that_is_not_there_is_asked_for_as_what_it_is(tmp_path: Path) -> None:
    (fault,) = read_search(SearchOptions(trials=1, space=str(tmp_path / "none.toml")), 1)[1]
    assert fault.endswith("expected a TOML file with a field of the search space a line")


@pytest.fixture
def outcomes() -> list[Outcome]:
    default = Outcome(
        point={"learning_rate": 0.005, "widths": [8, 8, 16, 16]}, value=0.5, epochs=2, whole=True, parameters=1
    )
    return [default, dataclasses.replace(default, point={**default.point, "learning_rate": 0.01}, value=0.75)]


def test_what_is_chosen_is_told_with_its_settings(outcomes: list[Outcome]) -> None:
    settings = "learning_rate=0.01 widths=8,8,16,16"
    assert chosen_line(outcomes, 1, TOP1) == f"trial 1 is chosen, of 2: val 75.0% (the default's: 50.0%): {settings}"
    best = chosen_line(outcomes[:1], 0, TOP1)
    assert best == "the default is the best of 1 trials: val 50.0%: learning_rate=0.005 widths=8,8,16,16"
    assert command_line("demo-digits", outcomes[1]) == (
        "to train it so: python jobs/fanout_vtab.py --tasks demo-digits --set learning_rate=0.01 --set widths=8,8,16,16"
    )
