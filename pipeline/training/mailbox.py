"""What a unit's workers and its driver tell each other while it runs: rows one way, the wish to stop the other."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SECONDS_BETWEEN_QUESTIONS = 1.0
SECONDS_FOR_AN_ANSWER = 0.02
"""Waited for it where it is asked; one that takes longer is looked for at the next step."""
Rows = list[dict[str, Any]]


class _Box:
    """Lives and dies with the driver's node."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Rows]] = []
        self._stopping = False

    def put(self, run: int, rows: Rows) -> None:
        self._rows.append((run, rows))

    def take(self) -> list[tuple[int, Rows]]:
        rows, self._rows = self._rows, []
        return rows

    def stop(self) -> None:
        self._stopping = True

    def is_stopping(self) -> bool:
        return self._stopping


class Mailbox:
    """The driver's end."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.handle = ray.remote(_Box).options(num_cpus=0, scheduling_strategy=here).remote()
        """To be sent to the workers."""

    def take(self) -> list[tuple[int, Rows]]:
        """What has come since the last time: the index of a run in the unit and its new rows, in order."""
        return ray.get(self.handle.take.remote())

    def ask_to_stop(self) -> None:
        """The workers save their state soon, and end."""
        ray.get(self.handle.stop.remote())

    def close(self) -> None:
        ray.kill(self.handle)


class WorkersEnd:
    """A worker's end: of those of one unit, only the first asks."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._question: ray.ObjectRef | None = None
        self._asked = 0.0

    def put(self, run: int, rows: Rows) -> None:
        """Returns when the rows are with the driver's node."""
        ray.get(self._handle.put.remote(run, rows))

    def is_stopping(self) -> bool:
        """The last answer that has come."""
        if self._question is None and time.monotonic() - self._asked >= SECONDS_BETWEEN_QUESTIONS:
            self._question, self._asked = self._handle.is_stopping.remote(), time.monotonic()
        if self._question is None or not ray.wait([self._question], timeout=SECONDS_FOR_AN_ANSWER)[0]:
            return False
        question, self._question = self._question, None
        return ray.get(question)
