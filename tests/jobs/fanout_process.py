"""Runs the main job in its own process, on demo data with the shipped ViT, waits for it and reads its results."""

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
    """The job's command. Data is in ``root/data``; runs go to an sqlite file beside the storage, or to a server."""
    words = [sys.executable, "jobs/fanout_vtab.py", "--tasks", tasks, "--data", str(root / "data")]
    words += ["--backbone", "hst_vit_micro_patch8_64", "--storage", str(root / storage)]
    words += ["--tracking-uri", tracking_uri or f"sqlite:///{root / storage}.db", "--set", f"epochs={epochs}"]
    return words


def environment(root: Path, cluster: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a clean shell, with the cluster's Ray variables; without them, the job starts its own Ray."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "HST_"))}
    ray = {k: v for k, v in (cluster or {}).items() if k.startswith("RAY_")}
    return clean | ray | {"PYTHONPATH": str(ROOT), "HOME": str(root / "home"), "CUDA_VISIBLE_DEVICES": ""}


def start(root: Path, words: list[str], cluster: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Starts the job; read its output with ``communicate``."""
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
    """Returns when this many epochs of some task are saved, or when the job has ended."""
    deadline = time.monotonic() + seconds
    while job.poll() is None and time.monotonic() < deadline:
        if (checkpoints.progress(str(storage / "train")) or 0) >= epochs:
            return
        time.sleep(0.2)


def tensors(storage: Path, task: str = "demo-digits") -> dict[str, torch.Tensor]:
    """Tensors of the task's final run."""
    (path,) = (storage / "workflows" / task).glob("train-*-final.safetensors")
    return load_file(path)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
