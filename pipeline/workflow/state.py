"""The stages of a fan-out's tasks, as small files in storage. They can be read without a cluster, also after a kill.

    <storage>/fanouts/<key>/fanout.json     what was asked for, and when it was last begun
    <storage>/fanouts/<key>/<task>.json     the task's stage, with details

A task's file also names the driver that wrote it, so that its machine can tell whether it still runs. How far a
training has come is read from its checkpoints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.console.text_table import aligned
from pipeline.storage import files
from pipeline.tasks.kinds import TOP1, Measure
from pipeline.tasks.measure_text import results_text
from pipeline.training import checkpoints
from pipeline.workflow.lease import Owner

_FOLDER = "fanouts"
_FANOUT = "fanout.json"
STAGES = ("waiting", "shards", "search", "training", "registering", "searched", "done", "pending", "failed", "stopped")
"""The stages of a task, in their order; the last five are ends. ``searched``: only a search was asked for. ``pending``:
only the registration is missing, since MLflow did not answer."""
_ENDS = STAGES[-5:]


class FanoutState:
    """The state of one fan-out, which its driver writes."""

    def __init__(self, storage_uri: str, key: str, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._owner = Owner.of_this_process()
        self._stages: dict[str, str] = {}
        self._details: dict[str, dict[str, Any]] = {}
        self._folder = files.join(storage_uri, _FOLDER, key)

    def begin(self, what: str, tasks: Sequence[str]) -> None:
        """Notes what was asked for, for people, and the tasks, all of which now wait."""
        for task in tasks:
            self.set(task, "waiting")
        record = {"what": what, "tasks": list(tasks), "begun": time.time()}
        files.write_bytes(files.join(self._folder, _FANOUT), json.dumps(record).encode())

    def set(self, task: str, stage: str, **details: Any) -> None:
        """Notes a task's stage.

        Args:
            task: its name.
            stage: one of STAGES.
            details: JSON values: ``unit`` (the folder of a training) and ``epochs``; ``done`` and ``trials`` (of a
                search); ``val`` and ``test`` with their ``measure`` (`Measure.to_dict`); ``version``; ``error``.
        """
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r}: expected one of {', '.join(STAGES)}")
        if stage == "stopped":  # people ask how far it had come
            details = {**self._details.get(task, {}), **details}
        self._stages[task], self._details[task] = stage, details
        record = {"stage": stage, "since": time.time(), "owner": vars(self._owner), **details}
        try:
            files.write_bytes(files.join(self._folder, f"{task}.json"), json.dumps(record).encode())
        except (files.StorageError, OSError) as error:  # only people read it: no task fails for it
            self._say(f"{task}: its state could not be written ({error})")

    def stop(self) -> None:
        """Notes that every task that has not ended is stopped."""
        for task in [task for task, stage in self._stages.items() if stage not in _ENDS]:
            self.set(task, "stopped")


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """A task of a fan-out."""

    task: str
    stage: str
    """One of STAGES, or ``interrupted``: its driver died while it was under way."""
    since: float
    """Unix time."""
    detail: str
    """A text for people."""


@dataclass(frozen=True, kw_only=True)
class FanoutReport:
    """A fan-out, as its files describe it."""

    key: str
    what: str
    begun: float
    """Unix time of its last start."""
    tasks: list[TaskState]


def read_states(storage_uri: str) -> list[FanoutReport]:
    """Every fan-out of a storage, the latest first."""
    root = files.join(storage_uri, _FOLDER)
    reports = []
    for name in files.list_prefix(root):
        key, _, file = name.partition("/")
        if file != _FANOUT:
            continue
        record = json.loads(files.read_bytes(files.join(root, name)))
        tasks = [_task_state(task, files.join(root, key, f"{task}.json")) for task in record["tasks"]]
        reports.append(FanoutReport(key=key, what=record["what"], begun=record["begun"], tasks=tasks))
    return sorted(reports, key=lambda report: report.begun, reverse=True)


def done_tasks(storage_uri: str, key: str, tasks: Sequence[str]) -> set[str]:
    """The tasks that had nothing left to train when this fan-out last ran."""
    done = set()
    for task in tasks:
        try:
            record = json.loads(files.read_bytes(files.join(storage_uri, _FOLDER, key, f"{task}.json")))
        except FileNotFoundError:
            continue
        if record["stage"] in ("done", "pending", "searched"):
            done.add(task)
    return done


def states_table(reports: Sequence[FanoutReport]) -> str:
    """All fan-outs as text for people."""
    blocks = []
    for report in reports:
        rows = [[s.task, s.stage, _clock(s.since), s.detail] for s in report.tasks]
        lines = aligned(["task", "stage", "since", ""], rows, left=4)
        title = f"fan-out {report.key[:8]}, begun {_clock(report.begun)}: {report.what}"
        blocks.append("\n".join([title, *(f"  {line}".rstrip() for line in lines)]))
    return "\n\n".join(blocks)


def _task_state(task: str, uri: str) -> TaskState:
    record: dict[str, Any] = json.loads(files.read_bytes(uri))
    stage, details = record["stage"], []
    if stage == "training" or (stage == "stopped" and "unit" in record):
        saved, epochs = checkpoints.progress(record["unit"]), record["epochs"]
        details.append("nothing saved yet" if saved is None else f"saved after {saved:.3g} of {epochs} epochs")
    elif stage == "search" or (stage == "stopped" and "done" in record):
        details.append(f"{record['done']} of {record['trials']} trials done")
    elif stage == "searched":
        details.append(f"{record['trials']} trials, the best val {_measure(record).text(record['val'])}")
    elif stage in ("done", "pending"):
        version = f"version {record['version']}" if stage == "done" else "not registered: MLflow did not answer"
        details.append(f"{results_text(_measure(record), record['val'], record['test'])}, {version}")
    elif stage == "failed":
        details.append(record["error"].splitlines()[0])
    if stage not in _ENDS:
        owner = Owner(**record["owner"])
        if owner.is_gone():
            stage = "interrupted"
        details.append(f"{owner} is gone" if stage == "interrupted" else str(owner))
    return TaskState(task=task, stage=stage, since=record["since"], detail="; ".join(details))


def _measure(record: dict[str, Any]) -> Measure:
    """What a task is measured by; a file that does not say it was written when all were measured by top1."""
    return Measure.from_dict(record["measure"]) if "measure" in record else TOP1


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
