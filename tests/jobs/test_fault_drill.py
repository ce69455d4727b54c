"""The fault drill as a job: options that it refuses, and a very short drill on a real cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def drill(root: Path, *options: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    (root / "tmp").mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "HST_"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs/fault_drill.py"), *options],
        cwd=root,
        env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(root / "tmp")},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def left_by(root: Path) -> list[str]:
    """The files that the drill left; torch's own cache in the temporary folder does not count."""
    own = [path.name for path in (root / "tmp").iterdir() if path.name.startswith("hst-")]
    return own + [path.name for path in root.iterdir() if path.name != "tmp"]


def test_what_is_wrong_with_the_options_is_told_in_one_line(tmp_path: Path) -> None:
    refused = drill(tmp_path, "--tasks", "9", "--output", "out.json")
    assert (refused.returncode, refused.stderr) == (2, "error: --tasks 9: expected 1 to 6\n")
    refused = drill(tmp_path, "--output", "absent/out.json")
    assert refused.returncode == 2
    assert refused.stderr == f"error: --output absent/out.json: there is no folder {tmp_path}/absent\n"
    assert left_by(tmp_path) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_drill_ends_with_equal_results(tmp_path: Path) -> None:
    options = ("--minutes", "1", "--tasks", "2", "--kills", "3", "--output", str(tmp_path / "out.json"))
    ended = drill(tmp_path, *options, timeout=850)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["passed"]
    assert len(report["killed"]) == 3
    assert all(kill["recovered_s"] > 0 and kill["seen"] for kill in report["killed"])
    assert [task["equal"] for task in report["results"]] == [True, True]
    assert "passed: 3 of 3 kills recovered from" in ended.stdout
    assert left_by(tmp_path) == ["out.json"]
