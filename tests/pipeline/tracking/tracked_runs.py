"""Helpers for the tests of tracking: write runs and read them from MLflow databases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.tracking.mlflow_client import open_client
from pipeline.tracking.tracker import Tracker

Open = Callable[..., Tracker]


def runs_of(uri: str, experiment: str = "fan-out") -> list[Any]:
    client = open_client(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def opened(tracker: Tracker, key: str, **arguments: Any) -> str:
    """Opens a run and returns its id."""
    tracker.open_run(key, **arguments)
    return tracker.run_id(key)


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in open_client(uri).get_metric_history(run_id, metric)]


def away(*_arguments: Any, **_named: Any) -> None:
    raise ConnectionError("nobody there")


def write_one_of_each(tracker: Tracker, folder: Path) -> None:
    """Writes a parent and a child run with records of every kind."""
    tracker.open_run("fan", name="VTAB-1k", params={"seed": 0})
    tracker.open_run("fan/dtd", name="vtab-dtd", parent_key="fan", params={"lr": 1e-3}, tags={"subset": "yes"})
    for epoch in range(3):
        tracker.log_metrics("fan/dtd", epoch, {"train/loss": 1 / (epoch + 1), "val/top1": epoch / 10})
        tracker.log_metrics("fan/dtd", epoch, {"system/cpu_utilization_percentage": 50.0})
    (folder / "picture.png").write_bytes(b"a picture")
    tracker.log_artifact("fan/dtd", folder / "picture.png", "pictures")
    (folder / "picture.png").unlink()  # the caller may delete the file after the call
    tracker.close_run("fan/dtd", "FINISHED")
    tracker.close_run("fan", "FAILED")


def assert_one_of_each(uri: str, parent: str, child: str, folder: Path) -> None:
    assert {run.info.run_id for run in runs_of(uri)} == {parent, child}
    run = open_client(uri).get_run(child)
    assert run.info.run_name == "vtab-dtd"
    assert run.info.status == "FINISHED"
    assert open_client(uri).get_run(parent).info.status == "FAILED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["subset"] == "yes"
    assert run.data.params == {"lr": "0.001"}
    assert history(uri, child, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert history(uri, child, "val/top1") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert len(history(uri, child, "system/cpu_utilization_percentage")) == 3
    folder.mkdir(exist_ok=True)
    fetched = open_client(uri).download_artifacts(child, "pictures/picture.png", str(folder))
    assert Path(fetched).read_bytes() == b"a picture"
