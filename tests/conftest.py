"""Fixtures that tests of several packages share."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.cluster.ray_environment import prepare_ray_environment

os.environ.pop("RAY_ADDRESS", None)  # tests start their own clusters, whatever the shell names
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # interprets kernels on the CPU; must be set before anything imports triton
prepare_ray_environment()  # before any test module imports ray


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data and weights, which lies beside the repository and never in it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real data and weights: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server on loopback, with its own database and artifacts."""
    with serving_mlflow(tmp_path_factory.mktemp("mlflow-server"), free_port()) as address:
        yield address


@pytest.fixture
def serve_mlflow() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """The context manager ``serve_mlflow(folder, port, end)``, for tests that start and stop a server of their own."""
    return serving_mlflow


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 on which nobody listened just now."""
    return free_port()


def free_port() -> int:
    # Below the system's own range: it gives ports of that range to outgoing connections, too.
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("all of 100 ports are taken")


@contextlib.contextmanager
def serving_mlflow(root: Path, port: int, end: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """An MLflow server on 127.0.0.1:port that keeps everything in ``root``; the signal ``end`` ends it on exit."""
    arguments = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", f"{root}/artifacts"]
    with open(root / "server.log", "ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=root,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", server, root / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, end)  # the server leads a group with its worker
        server.wait(timeout=30)


def _wait_until_healthy(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"MLflow server did not start:\n{log.read_text()[-2000:]}")
