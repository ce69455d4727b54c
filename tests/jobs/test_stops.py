"""The main job is stopped on a shared cluster: it says so and leaves nothing on the cluster."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.demo import make_demo_data
from pipeline.drill.cluster import LocalCluster, wait_until
from pipeline.training import checkpoints
from tests.jobs.fanout_process import ROOT, command, environment, start, wait_for_epochs

CLUSTERS_OWN = "_AutoscalingCoordinatorActor"
"""Ray keeps one such actor per cluster for all jobs, from the first training on."""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

LOOK = """
import json, ray
from ray.util.state import list_actors
ray.init(logging_level="error", log_to_driver=False)
groups = [group["state"] for group in ray.util.placement_group_table().values()]
actors = [f"{actor.class_name} {actor.state}" for actor in list_actors(limit=1000)]
print(json.dumps([[g for g in groups if g != "REMOVED"], [a for a in actors if not a.endswith(" DEAD")]]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        yield cluster


def left_on(cluster: LocalCluster, root: Path) -> list[Any]:
    """Placement groups, actors and actors' processes that another driver sees, without Ray's own actor."""
    looked = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=environment(root, cluster.environment),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert looked.returncode == 0, looked.stderr
    groups, actors = json.loads(looked.stdout)
    return [*groups, *(found for found in [*actors, *map(str, cluster.actors())] if CLUSTERS_OWN not in found)]


def assert_nothing_is_left(cluster: LocalCluster, root: Path) -> None:
    assert wait_until(lambda: not left_on(cluster, root), 60), left_on(cluster, root)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_job_that_is_stopped_in_training_leaves_nothing_on_the_cluster(
    signal_number: signal.Signals, cluster: LocalCluster, tmp_path: Path
) -> None:
    make_demo_data(tmp_path / "data")
    with start(tmp_path, command(tmp_path, "storage", epochs=500), cluster.environment) as job:
        wait_for_epochs(job, tmp_path / "storage", 1)
        assert left_on(cluster, tmp_path), "`left_on` does not even see a job that runs"
        job.send_signal(signal_number)
        printed, told = job.communicate(timeout=100)
    assert job.returncode == 130, printed + told
    assert "stopped; run the same command again to continue" in told
    assert_nothing_is_left(cluster, tmp_path)


def test_a_job_that_is_stopped_while_ray_starts_its_workers_ends_as_any_other(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """Ray's own handler of SIGTERM would abort the job after three seconds, before its workers have started."""
    make_demo_data(tmp_path / "data")
    with start(tmp_path, command(tmp_path, "storage", epochs=500), cluster.environment) as job:
        assert job.stdout is not None
        assert any("starting 1 worker" in line for line in job.stdout)
        job.send_signal(signal.SIGTERM)
        printed, told = job.communicate(timeout=100)
    assert job.returncode == 130, printed + told
    assert "SIGTERM received" not in told
    assert_nothing_is_left(cluster, tmp_path)


def test_ray_job_stop_leaves_nothing_on_the_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    make_demo_data(tmp_path / "data")
    ray = [str(Path(sys.executable).parent / "ray"), "job"]
    words = command(tmp_path, "storage", epochs=500)
    words[1] = str(ROOT / words[1])  # jobs run in the folder where the head was started
    runtime = json.dumps({"env_vars": {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}})

    def ask(*arguments: str) -> str:
        asked = subprocess.run(
            [*ray, *arguments],
            cwd=tmp_path,
            env=environment(tmp_path, cluster.environment),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert asked.returncode == 0, asked.stdout + asked.stderr
        return asked.stdout

    ask("submit", "--no-wait", "--submission-id", "to-stop", "--runtime-env-json", runtime, "--", *words)
    saved = wait_until(lambda: (checkpoints.progress(str(tmp_path / "storage/train")) or 0) >= 1, 150)
    assert saved, ask("logs", "to-stop")
    ask("stop", "to-stop")
    assert "Job 'to-stop' was stopped" in ask("status", "to-stop")
    assert_nothing_is_left(cluster, tmp_path)
