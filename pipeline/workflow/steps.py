"""Durable steps: a result is kept under a fingerprint of everything it depends on, and is not computed twice.

A driver holds a lease while it works on a step, and only the holder commits a result. So no two drivers work on one
step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.storage.files import StorageError, exists, join, put_once, read_bytes
from pipeline.tracking.import_closure import modules_sha256
from pipeline.training.stopped import Stopped
from pipeline.workflow import lease
from pipeline.workflow.lease import Lease, LeaseLostError

_TRAINING = ("pipeline.training.on_ray.worker", "pipeline.training.on_ray.pack_worker")
_TRIAL = ("pipeline.search.trial", "pipeline.search.trials")
STEP_MODULES: dict[str, tuple[str, ...]] = {
    # The modules that do a step. A change in one of them, or in what it imports, makes the finished step invalid. The
    # modules that write shards are left out: the manifests' hashes say what is in the shards.
    "search": (*_TRAINING, *_TRIAL),
    "trial": (*_TRAINING, *_TRIAL),
    "train": _TRAINING,
    "registers": ("pipeline.search.trials",),
    "checkpoint": ("hst.checkpoint",),
}
_TRIALS_BY_TUNE = ("pipeline.search.tuning", "pipeline.search.tune_hooks")
_ALONE = {
    "checkpoint": ("pipeline.workflow.registering",),
    "search": _TRIALS_BY_TUNE,
    "trial": _TRIALS_BY_TUNE,
}
"""Modules that do a step but also import much that the step does not use: these count without their imports."""


def fingerprint(step: str, inputs: dict[str, Any], parts: tuple[str, ...] = ()) -> str:
    """64 hexadecimal digits over a step's name, its inputs (JSON values) and the sources it uses.

    Args:
        step: a key of STEP_MODULES.
        inputs: JSON values that the result depends on.
        parts: modules that this task uses and others do not: those of its method, its head and its kind.
    """
    sources = modules_sha256(STEP_MODULES[step] + parts, _ALONE.get(step, ()))
    content = {"step": step, "inputs": inputs, "sources": sources}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Steps:
    """The steps of one task, kept under ``<root>/<task>/``.

    Args:
        root: the folder of all tasks' steps, local or s3://.
        task: the task's name.
        parts: modules that this task uses and others do not (see `fingerprint`).
        say: prints a line for people when another driver works on a step.
        stop: once it is set, this driver no longer waits for another.
    """

    def __init__(
        self,
        root: str,
        task: str,
        *,
        parts: tuple[str, ...] = (),
        say: Callable[[str], None] = lambda line: None,
        stop: threading.Event | None = None,
    ) -> None:
        self.root = join(root, task)
        self._task, self._parts, self._say, self._stop = task, parts, say, stop or threading.Event()

    def fingerprint(self, step: str, inputs: dict[str, Any]) -> str:
        """The fingerprint of a step of this task."""
        return fingerprint(step, inputs, self._parts)

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
        self, step: str, inputs: dict[str, Any], work: Callable[[str, Lease], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        """The result of a step, and whether it had been computed before.

        Args:
            step: a key of STEP_MODULES.
            inputs: JSON values that the result depends on.
            work: is called with the fingerprint and the lease, and returns JSON values. It must write the lease's
            attempt
                into the names of its files, so that the files of two attempts are never mixed.

        Raises:
            Stopped: the fan-out stops while another driver has the step.
        """
        key = self.fingerprint(step, inputs)
        while (found := self.find(step, key)) is None:
            folder = self.file(self.name(step, key, ".lease"))
            with lease.hold(folder, waiting=self._waiting(step), stop=self._stop) as held:
                if held is None:
                    raise Stopped(f"{self._task}: stopped while another driver had the step {step}")
                if (found := self.find(step, key)) is not None:
                    break  # the other driver has finished it
                try:
                    result = work(key, held)
                    held.check()
                except Exception as error:
                    with contextlib.suppress(LeaseLostError, StorageError, OSError):
                        held.check()
                    if not held.lost.is_set():
                        raise
                    self._say(f"{self._task}: {step}: another driver took over while this one was silent ({error})")
                    continue
                if self._put(step, key, inputs, result, held):
                    return result, False
        return found, True

    def commit(self, step: str, inputs: dict[str, Any], result: dict[str, Any], held: Lease) -> None:
        """Keeps the result of a step that is part of another one, whose lease is ``held``.

        Raises:
            LeaseLostError: another driver has taken over.
        """
        held.check()
        self._put(step, self.fingerprint(step, inputs), inputs, result, held)

    def _put(self, step: str, key: str, inputs: dict[str, Any], result: dict[str, Any], held: Lease) -> bool:
        """Writes a record; returns whether it was the first."""
        record = {"step": step, "fingerprint": key, "inputs": inputs, "attempt": held.attempt, "result": result}
        return put_once(self.file(self.name(step, key, ".json")), json.dumps(record, indent=1).encode())

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[Lease]:
        """Keeps other drivers out of a part of the task's work that may be repeated without harm.

        Yields the lease, by which the work can check that no other driver has taken over.

        Raises:
            Stopped: the fan-out stops while another driver does this work.
        """
        with lease.hold(self.file(f"{what}.lease"), waiting=self._waiting(what), stop=self._stop) as held:
            if held is None:
                raise Stopped(f"{self._task}: stopped while another driver worked on {what}")
            yield held

    def _waiting(self, step: str) -> Callable[[lease.Owner], None]:
        return lambda owner: self._say(f"{self._task}: {step}: {owner} is working on it; waiting for it to end")
