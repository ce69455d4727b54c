"""The drill's own MLflow server on loopback, which can be killed and started again on the same port."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

_SECONDS_TO_START = 90
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class ServerError(RuntimeError):
    """The server does not start or does not answer."""


class MlflowServer:
    """An MLflow server that keeps its database, artifacts and log in ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Starts it and returns at once; `wait` waits for its answer."""
        words = ["server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        words += ["--artifacts-destination", str(self._folder / "artifacts")]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                env=os.environ | _ENVIRONMENT,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Waits until it answers. Raises ServerError, with the place of its log, if it does not."""
        deadline = time.monotonic() + _SECONDS_TO_START
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not reach loopback
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            try:
                with opener.open(f"{self.address}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise ServerError(f"the MLflow server at {self.address} does not answer; its log is {self._folder}/server.log")

    def kill(self) -> None:
        """Kills the server and its worker without warning; does nothing if they do not run."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(self._process.pid)
            for process in [head, *head.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._process = None
