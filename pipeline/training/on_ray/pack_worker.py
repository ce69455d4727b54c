"""Runs in the train worker of a pack: units join and leave by messages, and each is saved in its own folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import torch

from hst.backbone import Backbone
from pipeline.cluster.system_metrics import sample_system_metrics
from pipeline.storage.errors import DiskFullError, is_full
from pipeline.training import checkpoints
from pipeline.training.on_ray.mailbox import STOP, WorkersEnd
from pipeline.training.pack import Pack
from pipeline.training.task_run import RunState, TrainingError, is_mistake
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

JOIN, LEAVE = "join", "leave"
"""Messages to the worker. Each carries a unit's key; ``JOIN`` also carries the unit itself."""
GOES_ON, SAVED, ROWS, ENDED, LEFT, FAILED, TOGETHER = "goes on", "saved", "rows", "ended", "left", "failed", "together"
"""Messages from the worker. Each carries a unit's key, and:

=============  ==============================================================================================
``GOES_ON``    the finished epochs of the checkpoint that the unit resumes from, as a mean over its runs
``SAVED``      nothing
``ROWS``       the index of a run, and its new rows
``ENDED``      nothing: the unit is finished
``LEFT``       nothing: the unit has left because the driver asked
``FAILED``     whether the failure was a mistake, and its text
``TOGETHER``   the text of an error in the joint computation, which ends the worker; the key is empty
=============  ==============================================================================================
"""

IDLE_SECONDS = 5.0
"""Time without a unit after which the worker ends and frees its resources."""
LOOK_SECONDS = 0.1
"""Time between two looks into the mailbox while there is nothing to train."""
SAVING_PART = 0.05
"""Largest share of a pack's time that saving may take. Without it, one of many small tasks would always be due."""


@dataclass(kw_only=True)
class _Unit:
    """What the worker keeps about a unit beside the unit's states, which the pack has."""

    folder: str
    attempt: str
    saves: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    sent: list[int] = field(default_factory=list)
    """Number of rows of each run that the driver has."""


def work(config: dict[str, Any]) -> None:
    """Trains the units that the driver sends; ``config`` comes from `pipeline.training.on_ray.packs.Packs`."""
    torch.set_num_threads(config["threads"])
    workers = Workers(device=ray.train.torch.get_device(), device_share=config["device_share"])
    backbone = Backbone.from_arrays(config["backbone_name"], ray.get(config["backbone"]), config["backbone_identity"])
    backbone.to(workers.device, torch.float64 if config["float64"] else torch.float32)
    _PackWorker(workers, backbone, config).run()


class _PackWorker:
    def __init__(self, workers: Workers, backbone: Backbone, config: dict[str, Any]) -> None:
        self._workers, self._backbone = workers, backbone
        self._pack = Pack(workers)
        self._units: dict[str, _Unit] = {}
        self._mailbox = WorkersEnd(config["mailbox"])
        self._cache_shards = config["cache_shards"]
        self._seconds_to_report = config["seconds_between_reports"]
        self._seconds_to_pause = config["seconds_between_pauses"]
        self._save_seconds = 0.0
        self._stopping = False

    def run(self) -> None:
        """Trains until the driver asks it to stop, or until it has been idle for IDLE_SECONDS."""
        busy_at = time.monotonic()
        while not self._stopping and time.monotonic() - busy_at < IDLE_SECONDS:
            for message in self._mailbox.told():
                self._follow(*message)
            if not len(self._pack):
                time.sleep(LOOK_SECONDS)
                continue
            for name, error in self._step().items():
                self._failed(name, error)
            for name, states in self._pack.units().items():
                finished = all(state.finished for state in states)
                if (finished or self._is_due(name, states)) and self._save(name) and finished:
                    self._leave(name, ENDED)
            busy_at = time.monotonic()

    def _step(self) -> dict[str, Exception]:
        try:
            return self._pack.step()
        except Exception as error:
            self._mailbox.put(TOGETHER, "", f"{type(error).__name__}: {error}")
            raise

    def _follow(self, what: str, name: str = "", unit: dict[str, Any] | None = None) -> None:
        if what == JOIN:
            assert unit is not None
            self._join(name, unit)
        elif what == LEAVE and name in self._units:
            if self._save(name):
                self._leave(name, LEFT)
        elif what == STOP:
            self._stopping = True
            for left in list(self._units):
                self._follow(LEAVE, left)

    def _join(self, name: str, unit: dict[str, Any]) -> None:
        try:
            specs = [RunSpec(**spec) for spec in unit["specs"]]
            checkpoint = checkpoints.find(unit["folder"])
            runs = [build_run(spec, self._backbone, self._workers, cache_shards=self._cache_shards) for spec in specs]
            self._pack.join(name, runs, None if checkpoint is None else checkpoint.states())
        except Exception as error:
            self._tell_failure(name, error)
            return
        epochs = [state.epochs_done for state in self._pack.units()[name]]
        self._units[name] = _Unit(folder=unit["folder"], attempt=unit["attempt"], sent=epochs)
        if checkpoint is not None:
            self._mailbox.put(GOES_ON, name, checkpoint.progress[0] / len(runs))

    def _is_due(self, name: str, states: list[RunState]) -> bool:
        """Whether it is time to save a unit that has not finished."""
        unit = self._units[name]
        at_ends = any(state.epochs_done > sent for state, sent in zip(states, unit.sent, strict=True))
        seconds = self._seconds_to_report if at_ends else self._seconds_to_pause
        least = self._save_seconds * len(self._units) / SAVING_PART
        return time.monotonic() - unit.saved_at >= max(seconds, least)

    def _save(self, name: str) -> bool:
        """Saves a unit, then sends its new rows. Returns whether the unit is still in the pack."""
        unit, began = self._units[name], time.monotonic()
        try:
            states = self._pack.sync(name)
            unit.saves += 1
            checkpoints.keep(unit.folder, unit.attempt, unit.saves, states)
        except Exception as error:
            self._pack.leave(name)
            self._failed(name, error)
            return False
        self._mailbox.put(SAVED, name)
        unit.saved_at = time.monotonic()
        self._save_seconds = unit.saved_at - began
        system = sample_system_metrics()
        for i, state in enumerate(states):
            if rows := state.history[unit.sent[i] :]:
                self._mailbox.put(ROWS, name, i, [*rows[:-1], {**rows[-1], **system}])
        unit.sent = [state.epochs_done for state in states]
        return True

    def _leave(self, name: str, how: str) -> None:
        self._pack.leave(name)
        del self._units[name]
        self._mailbox.put(how, name)

    def _failed(self, name: str, error: Exception) -> None:
        """Forgets a unit that failed and has left the pack, and reports its failure."""
        del self._units[name]
        self._tell_failure(name, error)

    def _tell_failure(self, name: str, error: Exception) -> None:
        if is_full(error):
            error = TrainingError(str(DiskFullError.of(error.filename or name, error)))
        self._mailbox.put(FAILED, name, is_mistake(error), f"{error}" or type(error).__name__)
