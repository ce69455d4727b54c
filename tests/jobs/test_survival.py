"""The main job is killed without warning, and the same command ends as if nothing had been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.demo import make_demo_data
from pipeline.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 12

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]


def command(root: Path, storage: str) -> list[str]:
    words = [sys.executable, "jobs/fanout_vtab.py", "--tasks", "demo-digits", "--data", str(root / "data")]
    words += ["--backbone", "hst_vit_micro_patch8_64", "--storage", str(root / storage)]
    words += ["--tracking-uri", f"sqlite:///{root / storage}.db", "--set", f"epochs={EPOCHS}"]
    return words


def environment(root: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "HST_"))}
    return clean | {"PYTHONPATH": str(ROOT), "HOME": str(root / "home"), "CUDA_VISIBLE_DEVICES": ""}


def run(root: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, env=environment(root), capture_output=True, text=True, timeout=300)


def tensors(root: Path, storage: str) -> dict[str, torch.Tensor]:
    (path,) = (root / storage / "workflows/demo-digits").glob("train-*-final.safetensors")
    return load_file(path)


def test_a_driver_that_is_killed_loses_nothing_that_was_reported(tmp_path: Path) -> None:
    make_demo_data(tmp_path / "data")
    with subprocess.Popen(
        command(tmp_path, "disturbed"),
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        deadline = time.monotonic() + 200
        while driver.poll() is None and time.monotonic() < deadline:
            if (checkpoints.progress(str(tmp_path / "disturbed/train")) or 0) >= 2:
                break
            time.sleep(0.2)
        driver.send_signal(signal.SIGKILL)
    status = run(tmp_path, [*command(tmp_path, "disturbed"), "--status"])
    assert status.returncode == 0, status.stderr
    assert "demo-digits  interrupted" in status.stdout
    assert f"of {EPOCHS} epochs" in status.stdout

    again = run(tmp_path, command(tmp_path, "disturbed"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "demo-digits: going on after" in again.stdout
    whole = run(tmp_path, command(tmp_path, "whole"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    found, expected = tensors(tmp_path, "disturbed"), tensors(tmp_path, "whole")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name

    once_more = run(tmp_path, command(tmp_path, "disturbed"))
    assert once_more.returncode == 0
    assert "demo-digits: trained before, not again" in once_more.stdout
    assert "demo-digits  done" in run(tmp_path, [*command(tmp_path, "disturbed"), "--status"]).stdout
    assert not checkpoints.find(str(tmp_path / "disturbed/train")), "a finished unit keeps no checkpoints"
