"""What the fan-out says of a task that failed, and its key; the rest of it runs in tests/jobs."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.data.errors import DataError
from pipeline.fanout import fanout
from pipeline.fanout.options import FanoutOptions
from pipeline.tasks.catalogue import TASKS


def test_a_failed_task_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Any, site: Any) -> None:
        raise DataError("vtab-dtd: the shards are damaged")

    monkeypatch.setattr(fanout, "run_task", fail)
    told: list[str] = []
    cluster = SimpleNamespace(plan=SimpleNamespace(concurrent=1))
    site: Any = SimpleNamespace(cluster=cluster, reporting=SimpleNamespace(say=told.append))
    job: Any = SimpleNamespace(task=TASKS["vtab-dtd"])
    row = fanout._run_all([job], site, fanout.run_task)["vtab-dtd"]
    assert told == ["vtab-dtd: FAILED: the shards are damaged"]
    assert (row.status, row.error) == ("failed", "the shards are damaged")


def test_a_fan_out_goes_on_after_a_password_is_changed() -> None:
    old, new = (
        fanout._key(FanoutOptions(tracking_uri=f"http://me:{password}@host", storage="/storage"), [], "0" * 64)
        for password in ("hunter22", "hunter23")
    )
    assert old == new
