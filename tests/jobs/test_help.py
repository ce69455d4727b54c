"""Every job prints its help without doing anything, and refuses wrong options."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hst.config import HSNConfig
from pipeline.tasks.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
JOBS = sorted(path.relative_to(ROOT) for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")


def test_there_are_jobs() -> None:
    assert {"fanout_vtab", "make_demo_data"} <= {path.stem for path in JOBS}


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_job_answers_help(job: Path, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
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


def test_the_fields_that_set_takes_are_in_the_help() -> None:
    command = [sys.executable, str(ROOT / "jobs/fanout_vtab.py"), "--help"]
    environment = {"PATH": "", "HOME": "/", "PYTHONPATH": str(ROOT)}
    words = set(re.split(r"[\s,;]+", subprocess.run(command, env=environment, capture_output=True, text=True).stdout))
    assert {field.name for kind in (Recipe, HSNConfig) for field in dataclasses.fields(kind)} <= words


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


@pytest.mark.parametrize("number", ["0", "-1", "x", "2.5"])
def test_a_pack_of_no_number_of_tasks_is_refused(number: str, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "jobs/fanout_vtab.py"), "--pack", number]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    expected = "expected how many tasks are trained in one batch, at least 1, or nothing"
    assert result.stderr.endswith(f"argument --pack: {number!r}: {expected}\n")


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

class CtrlC:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.meta_path.insert(0, CtrlC())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "command",
    [
        ["fanout_vtab.py"],
        ["search_task.py", "dtd"],
        ["make_demo_data.py", "demo"],
        ["pretrain_demo_vit.py"],
        ["write_shards.py", "dtd", "--to", "x"],
    ],
    ids=lambda command: command[0],
)
def test_a_job_interrupted_while_it_imports_says_so_in_one_line(command: list[str], tmp_path: Path) -> None:
    program = [sys.executable, "-c", INTERRUPTED_IMPORT, str(ROOT / "jobs" / command[0]), *command[1:]]
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20)
    assert result.returncode == 130
    assert result.stderr == "stopped; the same command goes on where this one was\n"
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_search_that_nobody_asked_for_are_a_fault(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "jobs" / "fanout_vtab.py"), "--search-epochs", "5", "--common-registers"]
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    assert (
        "--search-epochs, --common-registers: nothing is searched; how many trials is said by --search N"
        in result.stderr
    )
    assert list(tmp_path.iterdir()) == []
