"""What a fan-out is at, as small files in storage: to be read while it runs, or after it was killed, with no cluster.

    <storage>/fanouts/<key>/fanout.json     what was asked for, and when it was last begun
    <storage>/fanouts/<key>/<task>.json     the task's stage, and what there is to say of it

A file says what the driver last wrote, and who that is, so that on its machine one can tell whether it still runs. How
far a training is, its checkpoints tell.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.console.text_table import aligned
from pipeline.storage import files
from pipeline.training import checkpoints
from pipeline.workflow.lease import Owner

_FOLDER = "fanouts"
_FANOUT = "fanout.json"
STAGES = ("waiting", "shards", "search", "training", "registering", "searched", "done", "pending", "failed", "stopped")
"""In the order in which a task goes through them; one of the last five is its end. ``searched``: nothing else was asked
for. ``pending``: all is done but the registration, since MLflow did not answer."""
_ENDS = STAGES[-5:]


class FanoutState:
    """Written by the driver of one fan-out."""

    def __init__(self, storage_uri: str, key: str, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._owner = Owner.of_this_process()
        self._stages: dict[str, str] = {}
        self._details: dict[str, dict[str, Any]] = {}
        self._folder = files.join(storage_uri, _FOLDER, key)

    def begin(self, what: str, tasks: Sequence[str]) -> None:
        """What was asked for, for people, and the tasks; all of them are waiting from now on."""
        for task in tasks:
            self.set(task, "waiting")
        record = {"what": what, "tasks": list(tasks), "begun": time.time()}
        files.write_bytes(files.join(self._folder, _FANOUT), json.dumps(record).encode())

    def set(self, task: str, stage: str, **details: Any) -> None:
        """One of STAGES; details are JSON values: ``unit`` (of training, its folder), ``epochs``, ``done`` and
        ``trials`` (of a search), ``val``, ``test``, ``version``, ``error``."""
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r}: expected one of {', '.join(STAGES)}")
        if stage == "stopped":  # what was done by then is what people ask
            details = {**self._details.get(task, {}), **details}
        self._stages[task], self._details[task] = stage, details
        record = {"stage": stage, "since": time.time(), "owner": vars(self._owner), **details}
        try:
            files.write_bytes(files.join(self._folder, f"{task}.json"), json.dumps(record).encode())
        except (files.StorageError, OSError) as error:  # for people alone: no task fails by it
            self._say(f"{task}: its state could not be written ({error})")

    def stop(self) -> None:
        """Every task that has not ended by now is stopped."""
        for task in [task for task, stage in self._stages.items() if stage not in _ENDS]:
            self.set(task, "stopped")


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """A task of a fan-out."""

    task: str
    stage: str
    """One of STAGES, or ``interrupted``: it was under way when its driver died."""
    since: float
    """Unix time."""
    detail: str
    """For people."""


@dataclass(frozen=True, kw_only=True)
class FanoutReport:
    """A fan-out, as storage has it."""

    key: str
    what: str
    begun: float
    """Unix time, of its last start."""
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
    """Those that had nothing left to train when this fan-out was last under way."""
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
    """For people."""
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
        details.append(f"{record['trials']} trials, the best val {record['val']:.1%}")
    elif stage in ("done", "pending"):
        val = "" if record["val"] is None else f"val {record['val']:.1%}, "
        version = f"version {record['version']}" if stage == "done" else "not registered: MLflow did not answer"
        details.append(f"{val}test {record['test']:.1%}, {version}")
    elif stage == "failed":
        details.append(record["error"].splitlines()[0])
    if stage not in _ENDS:
        owner = Owner(**record["owner"])
        if owner.is_gone():
            stage = "interrupted"
        details.append(f"{owner} is gone" if stage == "interrupted" else str(owner))
    return TaskState(task=task, stage=stage, since=record["since"], detail="; ".join(details))


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
