"""How a driver joins Ray: what it passes to its workers, what it leaves behind, and what it says if there is none."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from hst import plain
from pipeline.cluster import ray_cluster
from pipeline.cluster.answering import RayUnavailableError
from pipeline.cluster.ray_environment import WORKER_ENVIRONMENT


def test_workers_go_the_plain_ways_where_the_driver_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_cluster.signal, "signal", lambda *_: None)
    monkeypatch.setenv(plain.VARIABLE, "1")
    with ray_cluster.connect():
        pass
    assert told["runtime_env"]["env_vars"] == {**WORKER_ENVIRONMENT, "HST_PLAIN": "1"}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that starts nothing."""
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: None)


@pytest.mark.usefixtures("no_ray")
def test_sigterm_does_afterwards_what_it_did_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ray_cluster.connect():
        assert signal.getsignal(signal.SIGTERM) not in (before, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(KeyError), ray_cluster.connect():
        raise KeyError("a fault of the job")
    assert signal.getsignal(signal.SIGTERM) is before


def fails(**_: Any) -> None:
    raise OSError("no space left on device")


def test_a_local_ray_that_does_not_start_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))  # the paths of Ray's sockets are too long
    told = r"^a local Ray did not start: .*107 bytes.*RAY_TMPDIR can name"
    with pytest.raises(RayUnavailableError, match=told), ray_cluster.connect():
        pytest.fail("Ray has started")


def test_its_logs_are_named_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray_cluster.ray, "init", fails)
    with pytest.raises(RayUnavailableError, match=r"did not start: no space left on device; RAY_TMPDIR"):
        ray_cluster.connect().__enter__()
    logs = tmp_path / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    with pytest.raises(RayUnavailableError, match=rf"no space left on device; its logs are in {logs}; RAY_TMPDIR"):
        ray_cluster.connect().__enter__()


def test_an_address_without_a_ray_is_refused_before_ray_tries(
    unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port}")
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(RayUnavailableError, match="no Ray answers there"):
        ray_cluster.connect().__enter__()
