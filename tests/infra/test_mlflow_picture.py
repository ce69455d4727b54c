"""The picture of MLflow's page is drawn only of a fan-out whose numbers are the README's."""

from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from infra import mlflow_picture
from infra.mlflow_picture import COLUMNS, ROOT, Mlflow, differences, run_numbers, table_numbers, view


def run(identity: str, tags: dict[str, str], metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "info": {"run_id": identity, "run_name": tags["mlflow.runName"]},
        "data": {
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
            "metrics": [{"key": key, "value": value} for key, value in metrics.items()],
        },
    }


def test_the_readmes_table_has_the_demos_four_tasks() -> None:
    found = table_numbers((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(found) == ["demo-digits", "demo-shape_count", "demo-shape_orientation", "demo-shape_x"]
    assert all(0 < float(val) < 100 and 0 < float(test) < 100 for val, test, _ in found.values())


def test_a_runs_numbers_are_those_that_the_table_prints() -> None:
    own = run("a", {"mlflow.runName": "x"}, {"val/top1": 0.8875, "test/top1": 0.89, "parameters": 431688.0})
    assert run_numbers(own) == ("88.8", "89.0", "431,688")
    table = "demo-shape_x            demo   88.8  89.0      -     431,688      86.1  1 min 29 s       1*\n"
    assert table_numbers(table) == {"demo-shape_x": run_numbers(own)}


def test_a_number_that_differs_and_a_task_that_is_missing_are_named() -> None:
    shown = {"a": ("1.0", "2.0", "3"), "b": ("1.0", "2.0", "3")}
    found = {"a": ("1.0", "2.1", "3"), "c": ("1.0", "2.0", "3")}
    assert [line[:2] for line in differences(shown, found)] == ["a:", "b:", "c:"]
    assert differences(shown, dict(shown)) == []


def test_the_last_finished_fanout_is_found_with_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        run("trial", {"mlflow.runName": "trial", "mlflow.parentRunId": "task"}, {}),
        run("task", {"mlflow.runName": "task", "mlflow.parentRunId": "new"}, {}),
        run("new", {"mlflow.runName": "fan-out"}, {}),
        run("old", {"mlflow.runName": "fan-out"}, {}),
    ]

    def answer(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert request.full_url == "http://127.0.0.1:1/api/2.0/mlflow/runs/search"
        return io.BytesIO(json.dumps({"runs": runs}).encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    identity, own = Mlflow("http://127.0.0.1:1/").last_fanout("1")
    assert (identity, [one["info"]["run_id"] for one in own]) == ("new", ["task"])


def test_the_list_shows_the_tasks_of_one_fanout_and_the_metrics_of_the_table() -> None:
    settings = json.loads(view("f"))
    assert settings["searchFilter"] == "tags.mlflow.parentRunId = 'f'"
    assert settings["selectedColumns"] == [f"metrics.`{name}`" for name in COLUMNS]


def test_nothing_is_drawn_where_the_numbers_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run("a", {"mlflow.runName": "demo-digits"}, {"val/top1": 0.5, "test/top1": 0.5, "parameters": 1})
    monkeypatch.setattr(Mlflow, "experiment_id", lambda self, name: "1")
    monkeypatch.setattr(Mlflow, "last_fanout", lambda self, experiment: ("f", [own]))
    monkeypatch.setattr(mlflow_picture.shutil, "which", lambda name: "/usr/bin/true")
    monkeypatch.setattr(
        "sys.argv", ["x", "--tracking-uri", "http://127.0.0.1:1", "--output", str(tmp_path / "picture.png")]
    )
    assert mlflow_picture.main() == 1
    assert "demo-digits" in capsys.readouterr().err
    assert not (tmp_path / "picture.png").exists()
