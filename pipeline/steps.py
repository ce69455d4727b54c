"""Durable steps: a result is kept under a fingerprint of everything it depends on, and not computed twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from pipeline.code_version import source_sha256
from pipeline.storage import exists, join, put_once, read_bytes

_READERS = ("decoded", "decoding", "index", "order", "shard_reader", "streaming")
STEP_SOURCES: dict[str, tuple[str, ...]] = {
    # The sources whose change makes a finished step of this name invalid.
    "train": (
        "hst",
        # What reads shards: what wrote them is told by the manifests' hashes.
        *(f"pipeline/data/{name}.py" for name in _READERS),
        "pipeline/evaluation",
        "pipeline/training",
        "pipeline/tasks/recipe.py",
    ),
    "checkpoint": ("hst", "pipeline/workflow.py"),
}


def fingerprint(step: str, inputs: dict[str, Any]) -> str:
    """64 hex digits over a step's name, its inputs (JSON values) and the sources it uses."""
    content = {"step": step, "inputs": inputs, "sources": source_sha256(STEP_SOURCES[step])}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Steps:
    """The steps of one task, kept under ``<root>/<task>/``."""

    def __init__(self, root: str, task: str) -> None:
        self.root = join(root, task)

    @staticmethod
    def name(step: str, key: str, suffix: str) -> str:
        """The name of a file of the step with fingerprint ``key``; data is written before the record."""
        return f"{step}-{key[:16]}{suffix}"

    def file(self, name: str) -> str:
        """The address of a file that a record names."""
        return join(self.root, name)

    def find(self, step: str, key: str) -> dict[str, Any] | None:
        """The result of a finished step, or None."""
        uri = self.file(self.name(step, key, ".json"))
        if not exists(uri):
            return None
        record = json.loads(read_bytes(uri))
        if record["fingerprint"] != key:
            raise ValueError(f"{uri}: holds fingerprint {record['fingerprint']}, expected {key}; move the file away")
        return record["result"]

    def run(
        self, step: str, inputs: dict[str, Any], work: Callable[[str], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        """The result, and whether it was there already. ``work`` is given the fingerprint and returns JSON values."""
        key = fingerprint(step, inputs)
        if (found := self.find(step, key)) is not None:
            return found, True
        result = work(key)
        record = {"step": step, "fingerprint": key, "inputs": inputs, "result": result}
        put_once(self.file(self.name(step, key, ".json")), json.dumps(record, indent=1).encode())
        found = self.find(step, key)
        assert found is not None
        return found, False
