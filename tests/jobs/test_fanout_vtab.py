"""The main job on demo data, with a real Ray cluster, a real MLflow server and one task that fails."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "swordfish-1"
TASKS = ["demo-digits", "demo-shape_x", "demo-shape_count"]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@dataclass
class Fanout:
    root: Path
    tracking_uri: str
    first: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]

    def registry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs ``hst-registry`` in an empty folder with only the tracking URI set."""
        folder = self.root / "elsewhere"
        folder.mkdir(exist_ok=True)
        environment = os.environ | {"MLFLOW_TRACKING_URI": self.tracking_uri}
        command = [sys.executable, "-c", "import sys; from pipeline.registry.cli import main; sys.exit(main())"]
        return subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def environment_of(root: Path, code: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "HST_"))}
    return clean | {"PYTHONPATH": str(code), "HOME": str(root / "home"), "CUDA_VISIBLE_DEVICES": ""}


def command_of(root: Path, tracking_uri: str, tasks: list[str], *settings: str) -> list[str]:
    command = [sys.executable, "jobs/fanout_vtab.py", "--tasks", ",".join(tasks), "--data", str(root / "data")]
    command += ["--backbone", "hst_vit_micro_patch8_64", "--backbone-weights", "random"]
    command += ["--storage", str(root / "storage"), "--tracking-uri", tracking_uri, "--registry-prefix", "e2e-"]
    return command + [word for setting in settings for word in ("--set", setting)]


def run_job(root: Path, tracking_uri: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the job from a copy of the code that is deleted afterwards, like a submitted job's working directory."""
    code = root / "working-dir"
    for package in ("hst", "pipeline", "jobs"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [*command_of(root, tracking_uri, TASKS, "epochs=2", "head_input=side+cls"), *options]
    command += ["--experiment", "end to end"]
    environment = environment_of(root, code)
    result = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, timeout=380)
    shutil.rmtree(code)
    return result


@pytest.fixture(scope="module")
def fanout(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Fanout:
    from pipeline.data.demo import make_demo_data

    root = tmp_path_factory.mktemp("fanout")
    make_demo_data(root / "data")
    broken = sorted((root / "data" / "shape_count").rglob("*.png"))[5]
    whole = broken.read_bytes()
    Image.open(broken).verify()
    broken.write_bytes(whole[: len(whole) // 2])
    tracking_uri = mlflow_server.replace("://", f"://someone:{PASSWORD}@")
    first = run_job(root, tracking_uri, "--pack")
    broken.write_bytes(whole)
    return Fanout(root, tracking_uri, first, run_job(root, tracking_uri))


def client(fanout: Fanout) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(fanout.tracking_uri)


def test_one_task_fails_by_name_and_the_others_are_registered(fanout: Fanout) -> None:
    assert fanout.first.returncode == 1, fanout.first.stderr
    assert "1 of 3 tasks failed: demo-shape_count" in fanout.first.stderr
    assert "demo-shape_count: FAILED" in fanout.first.stdout
    assert "Traceback" not in fanout.first.stdout + fanout.first.stderr
    table = fanout.first.stdout[fanout.first.stdout.index("task  ") :]
    assert all(task in table for task in TASKS)


def test_what_it_will_take_is_told_before_it_starts(fanout: Fanout) -> None:
    said = fanout.first.stdout
    assert "3 tasks at once, in 1 pack of at most 3, each 1 worker" in said
    assert said.index("selection  final  memory, alone") < said.index("s in all, ") < said.index("storage ")
    assert len(list((fanout.root / "storage/calibrations").iterdir())) == 2, "for a pack's threads and for a task's"
    assert "2 tasks of 3 done before" in fanout.again.stdout


def test_the_second_run_trains_what_failed_alone_and_makes_no_second_version(fanout: Fanout) -> None:
    assert fanout.again.returncode == 0, fanout.again.stderr
    for task in TASKS:
        assert (f"{task}: trained before, not again" in fanout.again.stdout) == (task != "demo-shape_count")
        assert [version.version for version in client(fanout).search_model_versions(f"name='e2e-{task}'")] == ["1"]


def test_mlflow_has_one_parent_and_a_child_a_task(fanout: Fanout) -> None:
    runs = client(fanout).search_runs([client(fanout).get_experiment_by_name("end to end").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.status, parent.data.metrics["tasks_done"], parent.data.tags["tasks_failed"]) == (
        "FINISHED",
        3,
        "0",
    )
    assert all(task in parent.data.tags["mlflow.note.content"] for task in TASKS)
    children = {(run.info.run_name, run.info.status): run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert set(children) == {(task, "FINISHED") for task in TASKS} | {("demo-shape_count", "FAILED")}
    assert "image file is truncated" in children["demo-shape_count", "FAILED"].data.tags["error"]
    run = children["demo-digits", "FINISHED"]
    assert run.data.params["epochs"] == "2"
    assert run.data.params["precision"] == "float32"
    for name in (
        "backbone_identity",
        "protocol",
        "code_version",
        "data_manifest_sha256.train",
        "data_manifest_sha256.test",
    ):
        assert name in run.data.tags, name
    for name in (
        "val/top1",
        "test/top1",
        "images_per_second",
        "device_seconds",
        "peak_memory_bytes",
        "system/cpu_utilization_percentage",
    ):
        assert name in run.data.metrics, name
    history = client(fanout).get_metric_history(run.info.run_id, "selection/loss")
    assert [point.step for point in history] == [1, 2]  # logged twice, kept once
    pictures = {file.path for file in client(fanout).list_artifacts(run.info.run_id, "pictures")}
    expected = {"selection-curve.png", "final-curve.png", "confusion-val.png", "confusion-test.png"}
    assert pictures == {f"pictures/{name}" for name in expected}


def test_a_pulled_checkpoint_predicts_what_the_trained_model_predicted(fanout: Fanout) -> None:
    from hst.backbone import load_backbone
    from hst.checkpoint import load_task_model
    from hst.preprocessing import Preprocessing
    from pipeline.data.batches.streaming import open_split

    pulled = fanout.registry("--registry-prefix", "e2e-", "pull", "demo-digits", "--with-backbone")
    assert pulled.returncode == 0, pulled.stderr
    folder = fanout.root / "elsewhere"
    (weights,) = folder.glob("backbone-*.safetensors")
    model, header = load_task_model(
        folder / "demo-digits.safetensors", load_backbone("hst_vit_micro_patch8_64", weights)
    )
    assert header.provenance["seed"] == 0
    preprocessing = Preprocessing.from_dict(header.preprocessing)
    split = open_split(str(fanout.root / "storage/shards/demo-digits/test/manifest.json"), preprocessing)
    right = total = 0
    for batch in split.eval_batches(batch_size=64):
        images = preprocessing.normalize(batch.images)
        right += int((model.predict(images).argmax(1) == batch.labels).sum())
        total += len(batch.labels)
    assert right / total == pytest.approx(header.metrics["test/top1"], abs=1e-12)
    from safetensors.torch import load_file

    (trained,) = (fanout.root / "storage/workflows/demo-digits").glob("train-*-final.safetensors")
    for name, value in load_file(trained).items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_password_of_the_tracking_uri_is_nowhere(fanout: Fanout) -> None:
    commands = [["list"], ["show", "demo-digits"], ["show", "demo-none"]]
    registry = [fanout.registry("--registry-prefix", "e2e-", *command) for command in commands]
    for printed in (fanout.first, fanout.again, *registry):
        assert PASSWORD not in printed.stdout + printed.stderr
    assert "hst-registry --tracking-uri 'http://***@127.0.0.1:" in fanout.again.stdout
    files = [path for path in fanout.root.rglob("*") if path.is_file()]
    assert {"ledger.jsonl", "fanout.json", "demo-digits.json", "source.json"} <= {path.name for path in files}
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    mlflow = client(fanout)
    experiments = mlflow.search_experiments()
    runs = mlflow.search_runs([experiment.experiment_id for experiment in experiments])
    versions = mlflow.search_model_versions("name LIKE 'e2e-%'")
    assert len(runs) > len(TASKS)
    assert len(versions) == len(TASKS)
    for kept in (*experiments, *(run.to_dictionary() for run in runs), *map(dict, versions)):
        assert PASSWORD not in str(kept)


def test_verify_accepts_what_was_pulled_and_refuses_one_flipped_byte(fanout: Fanout) -> None:
    assert fanout.registry("--registry-prefix", "e2e-", "pull", "demo-shape_x").returncode == 0
    file = fanout.root / "elsewhere" / "demo-shape_x.safetensors"
    assert fanout.registry("--registry-prefix", "e2e-", "verify", str(file)).returncode == 0
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused = fanout.registry("--registry-prefix", "e2e-", "verify", str(file))
    assert refused.returncode != 0
    assert str(file) in refused.stderr


def test_a_fan_out_that_is_told_to_stop_stops_and_says_so_in_mlflow(mlflow_server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from pipeline.data.demo import make_demo_data

    make_demo_data(tmp_path / "data")
    client = MlflowClient(mlflow_server)
    command = command_of(tmp_path, mlflow_server, ["demo-digits"], "epochs=5000")
    with subprocess.Popen(
        command, cwd=ROOT, env=environment_of(tmp_path, ROOT), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        deadline = time.monotonic() + 150
        while len(runs := running(client)) < 2 and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        job.send_signal(signal.SIGTERM)
        printed, told = job.communicate(timeout=60)
    assert job.returncode == 130, printed + told
    assert "stopped; run the same command again to continue" in told
    assert [client.get_run(run.info.run_id).info.status for run in runs] == ["KILLED", "KILLED"]


def running(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("hst")
    if experiment is None:
        return []
    return client.search_runs([experiment.experiment_id], filter_string="attributes.status = 'RUNNING'")
