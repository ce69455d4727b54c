"""The environment that a connected driver passes to its workers."""

from __future__ import annotations

from typing import Any

import pytest

from hst import plain
from pipeline.cluster import ray_cluster
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
