"""Checks of the image and the cluster file that need no docker engine and no other machines."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "ray-cluster.yaml").read_text())
    return loaded


def image_variables() -> dict[str, str]:
    return dict(re.findall(r"(?:ENV|^   ) *([A-Z_]+)=(\S+)", DOCKERFILE, flags=re.MULTILINE))


def test_rays_own_launcher_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_ray_starts_in_the_images_working_directory_which_is_the_repository(cluster: dict[str, Any]) -> None:
    (working_directory,) = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert "COPY --chown=hst . ." in DOCKERFILE
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert start.startswith(f"cd {working_directory} && ")


def test_the_token_is_asked_for_and_lies_where_the_image_looks(cluster: dict[str, Any]) -> None:
    variables = image_variables()
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] in cluster["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


def test_files_that_the_image_copies_by_name_exist_and_the_extra_too() -> None:
    for names in re.findall(r"^COPY (?!--chown)(.+) \./$", DOCKERFILE, flags=re.MULTILINE):
        assert all((ROOT / name).is_file() for name in names.split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "['pipeline']" in DOCKERFILE
    assert "pipeline" in project["optional-dependencies"]


def test_nodes_and_local_stack_agree_on_the_variables_of_a_job(cluster: dict[str, Any]) -> None:
    for command in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
        assert set(re.findall(r"([A-Z_]+)=", command)) == {"HST_DATA", "HST_STORAGE", "MLFLOW_TRACKING_URI"}


def test_every_version_is_pinned_and_no_address_is_named() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line) for line in lines)
    pinned = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["pipeline"] + extras["dev"]
    names = {re.sub("[-_.]+", "-", re.split(r"[\[<>=!~ ;]", text)[0]).lower() for text in wanted}
    assert names <= pinned


def test_the_scripts_are_sound_and_can_be_run() -> None:
    for script in (ROOT / "infra" / "demo.sh", ROOT / ".ci" / "run"):
        assert script.stat().st_mode & 0o111
        subprocess.run(["bash", "-n", script], check=True)
        assert "set -euo pipefail" in script.read_text()
