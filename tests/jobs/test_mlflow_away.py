"""MLflow is killed during the main job: training continues, nothing is lost or doubled, the job says how to go on."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline.data.demo import make_demo_data
from pipeline.workflow.state import read_states

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 2
MUCH_PATIENCE_S, LITTLE_PATIENCE_S = "600", "15"
# Runs the job as from a shell, but with another PATIENCE_S.
JOB = """
import sys
from pipeline.tracking import mlflow_client
mlflow_client.PATIENCE_S = float(sys.argv.pop(1))
sys.argv[0] = "jobs/fanout_vtab.py"
from jobs.fanout_vtab import main
sys.exit(main())
"""
# The same, as if MLflow had answered a moment ago, when it was checked.
UNCHECKED_JOB = "from pipeline.tracking import preflight; preflight.check_experiments = lambda *_: None" + JOB

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def arguments(root: Path, tracking_uri: str, tasks: list[str]) -> list[str]:
    words = ["--tasks", ",".join(tasks), "--data", str(root / "data"), "--backbone", "hst_vit_micro_patch8_64"]
    words += ["--storage", str(root / "storage"), "--tracking-uri", tracking_uri, "--max-concurrent", "1"]
    return [*words, "--set", f"epochs={EPOCHS}", "--set", "image_size=32"]


def environment(root: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "HST_"))}
    return clean | {"PYTHONPATH": str(ROOT), "HOME": str(root / "home"), "CUDA_VISIBLE_DEVICES": ""}


def start(root: Path, words: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(job: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not reached() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if not reached():
        job.terminate()
        pytest.fail("\n".join(job.communicate()))


def stages(root: Path) -> dict[str, str]:
    reports = read_states(str(root / "storage")) if (root / "storage").is_dir() else []
    return {task.task: task.stage for report in reports for task in report.tasks}


def assert_each_once(tracking_uri: str, tasks: list[str]) -> None:
    """Asserts one parent run, one child run and one version per task, and each metric once per epoch."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("hst").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert len(runs) == len(tasks) + 1
    assert set(children) == set(tasks)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for task, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for name in ("selection/loss", "final/loss"):
            assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [*range(1, EPOCHS + 1)]
        assert len(client.get_metric_history(run.info.run_id, "test/top1")) == 1
        (version,) = client.search_model_versions(f"name='{task}'")
        assert (version.version, version.run_id) == ("1", run.info.run_id)


def test_a_training_goes_on_while_mlflow_is_away_and_all_is_delivered_once_when_it_is_back(
    serve_mlflow: Callable[..., Any], unused_port: int, tmp_path: Path
) -> None:
    make_demo_data(tmp_path / "data")
    with ExitStack() as first:
        address = first.enter_context(serve_mlflow(tmp_path, unused_port, signal.SIGKILL))
        job = start(tmp_path, ["-c", JOB, MUCH_PATIENCE_S, *arguments(tmp_path, address, ["demo-digits"])])
        wait_until(job, lambda: stages(tmp_path).get("demo-digits") == "training")
    wait_until(job, lambda: stages(tmp_path)["demo-digits"] == "registering")  # training is finished
    with serve_mlflow(tmp_path, unused_port):
        printed, told = job.communicate(timeout=300)
        assert job.returncode == 0, printed + told
        assert_each_once(address, ["demo-digits"])


def test_an_mlflow_that_goes_before_it_has_the_backbone_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    make_demo_data(tmp_path / "data")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=hang_up_on_all, args=(listener,), daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        words = arguments(tmp_path, address, ["demo-digits"])
        job = start(tmp_path, ["-c", UNCHECKED_JOB, "1", *words])
        printed, told = job.communicate(timeout=300)
        listener.shutdown(socket.SHUT_RDWR)
    assert job.returncode == 1, printed + told
    (line,) = [line for line in told.splitlines() if address in line]
    assert line.startswith(f"error: MLflow at {address} did not answer within 1 s (")
    assert line.endswith(
        "; nothing was trained; when it is back: " + shlex.join(["python", "jobs/fanout_vtab.py", *words])
    )
    assert "Traceback" not in printed + told
    assert "starting" not in printed


def hang_up_on_all(listener: socket.socket) -> None:
    """Behaves like a proxy whose server is away."""
    with suppress(OSError):  # raised when the listener is closed
        while True:
            listener.accept()[0].close()


def test_what_an_mlflow_that_stays_away_has_not_got_is_delivered_by_the_same_command(
    serve_mlflow: Callable[..., Any], unused_port: int, tmp_path: Path
) -> None:
    tasks = ["demo-digits", "demo-shape_x"]
    make_demo_data(tmp_path / "data")
    with ExitStack() as first:
        address = first.enter_context(serve_mlflow(tmp_path, unused_port, signal.SIGKILL))
        words = arguments(tmp_path, address, tasks)
        job = start(tmp_path, ["-c", JOB, LITTLE_PATIENCE_S, *words])
        wait_until(job, lambda: "training" in stages(tmp_path).values())
    printed, told = job.communicate(timeout=500)
    assert job.returncode == 1, printed + told
    assert "Traceback" not in printed + told
    (line,) = [line for line in told.splitlines() if address in line]
    assert line.startswith(f"MLflow at {address} did not answer within {LITTLE_PATIENCE_S} s (ConnectionRefusedError")
    assert "pending: the registration of demo-digits, demo-shape_x and " in line
    assert str(tmp_path / "storage/ledgers") in line
    table = printed[printed.index("task  ") :]
    for task in tasks:
        (row,) = [row for row in table.splitlines() if row.startswith(f"{task} ")]
        assert row.split()[-2:] == ["pending", "[1]"]
        assert "-" not in row.split()[2:4], "no val or no test"
        assert len(list((tmp_path / "storage/workflows" / task).glob("checkpoint-*.safetensors"))) == 1
    assert stages(tmp_path) == dict.fromkeys(tasks, "pending")

    command = shlex.split(line[line.index("python jobs/fanout_vtab.py") :])
    assert command == ["python", "jobs/fanout_vtab.py", *words]
    with serve_mlflow(tmp_path, unused_port):
        again = start(tmp_path, command[1:])
        printed, told = again.communicate(timeout=300)
        assert again.returncode == 0, printed + told
        assert all(f"{task}: trained before, not again" in printed for task in tasks)
        assert "starting" not in printed
        assert "by a few steps" not in printed, "the time of a training was measured again"
        assert_each_once(address, tasks)
    assert stages(tmp_path) == dict.fromkeys(tasks, "done")
