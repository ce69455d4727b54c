"""Starts the main job as a process on demo data and the shipped ViT, waits for it, and reads what it left."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]


def command(
    root: Path, storage: str, *, tasks: str = "demo-digits", epochs: int = 12, tracking_uri: str = ""
) -> list[str]:
    """The job's command line for data in ``root/data``; without ``tracking_uri`` runs go to ``root/<storage>.db``."""
    words = [sys.executable, "jobs/fanout_vtab.py", "--tasks", tasks, "--data", str(root / "data")]
    words += ["--backbone", "hst_vit_micro_patch8_64", "--storage", str(root / storage)]
    words += ["--tracking-uri", tracking_uri or f"sqlite:///{root / storage}.db", "--set", f"epochs={epochs}"]
    return words


def environment(root: Path, cluster: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a clean shell; ``cluster`` says where Ray is, otherwise the job starts its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "HST_"))}
    ray = {k: v for k, v in (cluster or {}).items() if k.startswith("RAY_")}
    return clean | ray | {"PYTHONPATH": str(ROOT), "HOME": str(root / "home"), "CUDA_VISIBLE_DEVICES": ""}


def start(root: Path, words: list[str], cluster: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start the job; the caller reads its output with ``communicate``."""
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(root, cluster),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    root: Path, words: list[str], cluster: Mapping[str, str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, cwd=ROOT, env=environment(root, cluster), capture_output=True, text=True, timeout=timeout
    )


def wait_for_epochs(job: "subprocess.Popen[str]", storage: Path, epochs: float, seconds: float = 200) -> None:
    """Return when some task has saved ``epochs`` epochs, the job has ended, or ``seconds`` are over."""
    deadline = time.monotonic() + seconds
    while job.poll() is None and time.monotonic() < deadline:
        if (checkpoints.progress(str(storage / "train")) or 0) >= epochs:
            return
        time.sleep(0.2)


def tensors(storage: Path, task: str = "demo-digits") -> dict[str, torch.Tensor]:
    """The tensors of the task's final run."""
    (path,) = (storage / "workflows" / task).glob("train-*-final.safetensors")
    return load_file(path)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
