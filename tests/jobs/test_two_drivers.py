"""Two jobs start together on one storage: every step is done once, and both end with the same results."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.data.demo import make_demo_data
from tests.jobs.fanout_process import command, start

TASKS = ("demo-digits", "demo-shape_x")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]


def rows(printed: str) -> dict[str, list[str]]:
    """The final table by task, without the column of versions."""
    table = [line.split() for line in printed[printed.index("task  ") :].splitlines()]
    return {words[0]: words[1:-1] for words in table if words and words[0] in TASKS}


def test_two_drivers_on_one_storage_do_every_step_once(mlflow_server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    make_demo_data(tmp_path / "data")
    # The same command is refused, since each fan-out is one run in MLflow, so these differ in the order of the tasks.
    orders = (TASKS, TASKS[::-1])
    jobs = [
        start(
            tmp_path,
            [
                *command(tmp_path, "storage", tasks=",".join(tasks), epochs=3, tracking_uri=mlflow_server),
                *("--registry-prefix", "two-"),
            ],
        )
        for tasks in orders
    ]
    ends = [job.communicate(timeout=400) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], ends
    assert rows(ends[0][0]) == rows(ends[1][0])
    assert set(rows(ends[0][0])) == set(TASKS)

    client = MlflowClient(mlflow_server)
    for task in TASKS:
        said = [f"{task}: starting 1 worker" in printed for printed, _ in ends]
        assert sorted(said) == [False, True], ends
        assert len(list((tmp_path / "storage/workflows" / task).glob("train-*.json"))) == 1
        (unit,) = (tmp_path / "storage/train").glob(f"{task}-*")
        assert len(list(unit.iterdir())) == 1, "one start of one training"
        versions = client.search_model_versions(f"name='two-{task}'")
        assert len({version.run_id for version in versions}) == len(versions) == 2, "one for each fan-out's run"
        assert len({version.tags["sha256"] for version in versions}) == 1
    runs = experiment_runs(client, tmp_path)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.data.metrics["tasks_done"] for run in parents] == [2, 2]
    children = [
        (run.data.tags["mlflow.parentRunId"], run.info.run_name)
        for run in runs
        if "mlflow.parentRunId" in run.data.tags
    ]
    assert sorted(children) == sorted((parent.info.run_id, task) for parent in parents for task in TASKS)


def experiment_runs(client: Any, root: Path) -> list[Any]:
    """The runs of this test; other tests share the server."""
    keys = {path.name for path in (root / "storage/ledgers").iterdir()}
    runs = client.search_runs([client.get_experiment_by_name("hst").experiment_id])
    return [run for run in runs if run.data.tags["hst.key"].split("/")[0] in keys]
