"""What the fan-out says of a task that failed; the rest of it runs in tests/jobs."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.data.errors import DataError
from pipeline.fanout import fanout
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
