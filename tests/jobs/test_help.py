"""Every job says what it does, and does nothing yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
JOBS = sorted(path.relative_to(ROOT) for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")


def test_there_are_jobs() -> None:
    assert {"fanout_vtab", "make_demo_data"} <= {path.stem for path in JOBS}


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_job_answers_help(job: Path, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": ""}
    result = subprocess.run(
        [sys.executable, str(ROOT / job), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: ")
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["make_demo_data.py", "s3://bucket/data"],
        ["pretrain_demo_vit.py", "--minutes", "0", "--output", "s3://bucket/vit.safetensors"],
        ["pretrain_demo_vit.py", "--minutes", "0", "--state", "s3://bucket/state"],
    ],
    ids=" ".join,
)
def test_what_is_written_on_this_machine_alone_is_not_given_an_address(command: list[str], tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "jobs" / command[0]), *command[1:]]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    assert result.stderr.endswith(f"{command[-1]!r}: expected a local path\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_job_names_an_option_that_it_does_not_have(job: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / job), "--no-such-option"], cwd=tmp_path, capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
