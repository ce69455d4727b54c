"""Whole jobs with a search: the winner is trained, evaluated and registered; a search never opens test."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.data.prepare import prepare_task
from pipeline.tasks.catalogue import TASKS
from tests.jobs.test_fanout_vtab import environment_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]


def job(root: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"jobs/{name}.py", *arguments, "--data", str(root / "data")]
    command += ["--backbone", "hst_vit_micro_patch8_64", "--backbone-weights", "random"]
    command += ["--storage", str(root / "storage"), "--tracking-uri", f"sqlite:///{root}/mlflow.db"]
    return subprocess.run(
        command, cwd=ROOT, env=environment_of(root, ROOT), capture_output=True, text=True, timeout=400
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.data.demo import make_demo_data

    root = tmp_path_factory.mktemp("search")
    make_demo_data(root / "data")
    (root / "space.toml").write_text("learning_rate = [1e-3, 2e-3, 4e-3]\nnum_registers = [0, 1, 2]\n")
    return root


SEARCH = ["--search", "3", "--search-epochs", "3", "--search-seconds", "1000"]
FIXED = [
    word
    for field in (
        "widths=8,8,16,24",
        "num_heads=2,2,4,4",
        "depths=1,1,1,1",
        "weight_decay=0.001",
        "drop_path=0.1",
        "epochs=4",
    )
    for word in ("--set", field)
]


@pytest.fixture(scope="module")
def searched(root: Path) -> list[subprocess.CompletedProcess[str]]:
    """Results of running the same command twice."""
    arguments = ["--tasks", "demo-digits,demo-shape_x", *SEARCH, *FIXED, "--search-space", str(root / "space.toml")]
    arguments += ["--seeds", "2", "--common-registers"]
    return [job(root, "fanout_vtab", *arguments) for _ in range(2)]


def runs_of(root: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("hst")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.slow
def test_the_winner_of_each_task_is_trained_and_registered(
    root: Path, searched: list[subprocess.CompletedProcess[str]]
) -> None:
    first, _ = searched
    assert first.returncode == 0, first.stdout + first.stderr
    for task in ("demo-digits", "demo-shape_x"):
        (search,) = (root / "storage" / "workflows" / task).glob("search-*.json")
        outcomes = json.loads(search.read_text())["result"]["outcomes"]
        assert len(outcomes) == 3
        (registers,) = re.findall(r"num_registers=(\d+) for all tasks", first.stdout)
        best = max(
            (one for one in outcomes if one["whole"] and one["point"]["num_registers"] == int(registers)),
            key=lambda one: one["value"],
        )
        trained = [
            json.loads(record.read_text())["inputs"]["runs"][0]
            for record in (root / "storage" / "workflows" / task).glob("train-*.json")
        ]
        assert sorted(run["seed"] for run in trained) == [0, 1]
        for run in trained:
            assert run["recipe"]["epochs"] == 4, "trials have fewer epochs, but the winner has all"
            assert run["recipe"]["learning_rate"] == best["point"]["learning_rate"]
            assert run["method"]["num_registers"] == int(registers)
    assert re.search(r"demo-digits +demo +\d+\.\d ± \d+\.\d +\d+\.\d ± \d+\.\d ", first.stdout)
    assert "± standard deviation over 2 seeds" in first.stdout


@pytest.mark.slow
def test_run_again_nothing_is_tried_or_trained_and_the_table_is_the_same(
    root: Path, searched: list[subprocess.CompletedProcess[str]]
) -> None:
    _, again = searched
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("searched before, not again") == 4, "before and after the choice of the registers"
    assert again.stdout.count("trained before, not again") == 4
    assert "trial 0 (" not in again.stdout
    tables = [result.stdout[result.stdout.index("\ntask          group") :] for result in searched]
    assert tables[0].splitlines()[:5] == tables[1].splitlines()[:5]
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    assert [str(version.version) for version in client.search_model_versions("name='demo-digits'")] == ["1"]


@pytest.mark.slow
def test_every_trial_and_every_seed_is_a_run_below_its_tasks_run(
    root: Path, searched: list[subprocess.CompletedProcess[str]]
) -> None:
    runs = {run.info.run_id: run for run in runs_of(root)}
    by_name = {run.info.run_name: run for run in runs.values()}
    assert len(by_name) == len(runs) == 1 + 2 * (1 + 3 + 1)
    for task in ("demo-digits", "demo-shape_x"):
        below = {
            name
            for name, run in by_name.items()
            if run.data.tags.get("mlflow.parentRunId") == by_name[task].info.run_id
        }
        assert below == {f"{task} trial 0 (default)", f"{task} trial 1", f"{task} trial 2", f"{task} seed 1"}
        assert all(by_name[name].info.status == "FINISHED" for name in below)
        trial = by_name[f"{task} trial 0 (default)"]
        assert {"val/top1", "search/loss", "parameters"} <= trial.data.metrics.keys()
        assert not any(name.startswith("test/") for name in trial.data.metrics)
        assert trial.data.params["num_registers"] == "1"
        assert "trial" in by_name[task].data.tags["mlflow.note.content"]
        client = MlflowClient(f"sqlite:///{root}/mlflow.db")
        pictures = {file.path for file in client.list_artifacts(by_name[task].info.run_id, "pictures")}
        assert {
            f"pictures/search-{name}.png" for name in ("trials", "parallel-coordinates", "accuracy-parameters")
        } <= (pictures)


def without_test(root: Path, copy: Path) -> Path:
    """Writes shards of only train and val of a task; the rest of its data is out of reach."""
    prepare_task(TASKS["demo-digits"], str(root / "data"), str(copy / "data"), without_test=True)
    assert sorted(os.listdir(copy / "data" / "demo-digits")) == ["train", "val"]
    return copy / "data" / "demo-digits"


@pytest.mark.slow
def test_a_task_is_searched_and_then_trained_with_the_best(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    arguments = ["--tasks", "demo-digits", "--search", "2", "--search-epochs", "1", "--search-space"]
    result = job(tmp_path, "fanout_vtab", *arguments, str(root / "space.toml"), *FIXED[:-1], "epochs=2")
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "storage" / "workflows" / "demo-digits"
    (search,), (train,) = folder.glob("search-*.json"), folder.glob("train-*.json")
    outcomes = json.loads(search.read_text())["result"]["outcomes"]
    best = max(outcomes, key=lambda one: one["value"])["point"]
    for run in json.loads(train.read_text())["inputs"]["runs"]:
        assert run["recipe"]["learning_rate"] == best["learning_rate"]
        assert run["method"]["num_registers"] == best["num_registers"]
        assert run["recipe"]["epochs"] == 2
    assert re.search(r"demo-digits: (the default is the best of 2|trial 1 is chosen, of 2)", result.stdout)


@pytest.mark.parametrize(
    "trap",
    [pytest.param(False, id="no test", marks=pytest.mark.slow), pytest.param(True, id="a test that cannot be opened")],
)
def test_a_search_does_not_see_test(trap: bool, root: Path, tmp_path: Path) -> None:
    folder = without_test(root, tmp_path)
    if trap:
        (folder / "test").mkdir()
        for name in ("manifest.json", "index.parquet", "test-000000.tar"):
            (folder / "test" / name).symlink_to(name)  # a link to itself, so that opening it raises an error
        with pytest.raises(OSError, match="Too many levels"):
            (folder / "test" / "manifest.json").read_bytes()
    arguments = ["digits", "--trials", "2", *FIXED, "--search-space", str(root / "space.toml")]
    result = job(tmp_path, "search_task", *arguments)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^0[* ] +default +\d+\.\d +4 ", result.stdout, re.MULTILINE)
    assert re.search(r"(default is the best|is chosen).*val \d+\.\d%", result.stdout)


def test_faults_of_a_search_are_told_together_before_anything_starts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("lr = 1\nepochs = [1]\n")
    arguments = ["--tasks", "demo-digits", "--search", "0", "--search-epochs", "9", "--search-algorithm", "grid"]
    arguments += ["--seeds", "0", "--common-registers", "--set", "num_registers=1", "--set", "epochs=4"]
    result = job(root, "fanout_vtab", *arguments, "--search-space", str(tmp_path / "space.toml"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for fault in (
        "--seeds 0: expected at least 1",
        "--search 0: expected at least 1 trial",
        "--search-algorithm grid: expected one of random, optuna, optuna-pareto",
        "space.toml:1: lr: no such field; did you mean learning_rate?",
        "space.toml:2: epochs: cannot be searched",
        "--common-registers: num_registers is not among what is searched",
        "--search-epochs 9: more than the recipe's epochs=4",
    ):
        assert fault in result.stderr, (fault, result.stderr)
    assert os.listdir(tmp_path) == ["space.toml"]
