"""The driver's end of packs: workers that train several tasks in one batch, each task as long as it takes.

A unit goes to the pack with the fewest. A pack's worker starts with its first unit and ends soon after its last; one
that is killed is started again, and its units go on from what each had saved. Where something goes wrong while all
compute together (a GPU's memory does not suffice, say), half of them wait for the others from then on; in a pack of
one it is that one's fault.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.resources import Plan
from pipeline.stopped import Stopped
from pipeline.storage import join
from pipeline.training import checkpoints
from pipeline.training.checkpoints import RunResult
from pipeline.training.driver import (
    GRACE_S,
    MAX_RESTARTS,
    SECONDS_BETWEEN_PAUSES,
    SECONDS_BETWEEN_REPORTS,
    SECONDS_BETWEEN_ROWS,
    OnRows,
    run_trainer,
    torch_trainer,
)
from pipeline.training.mailbox import Mailbox
from pipeline.training.pack_worker import ENDED, FAILED, GOES_ON, JOIN, LEAVE, LEFT, ROWS, work
from pipeline.training.task_run import TrainingError, is_mistake
from pipeline.training.unit import RunSpec


@dataclass(eq=False, kw_only=True)
class _Unit:
    name: str
    content: dict[str, Any]
    """For the worker."""
    on_rows: OnRows
    say: Callable[[str], None]
    restarts: int = 0
    """Without anything heard of it in between."""
    leaving: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        """Wakes who waits for it."""
        self.error = error
        self.done.set()


class Packs:
    """As many packs as the plan has workers at once.

    Args:
        backbone: of `pipeline.training.driver.put_backbone`; ``backbone_name`` and ``backbone_identity`` are its own.
        float64: whether the units have that precision: all or none.
        plan: with the tasks of a pack.
        folder: URI for Ray's own files.
        say: prints a line.
        cache_shards: see `pipeline.training.unit.build_run`.
        seconds_between_reports: at epochs' ends; a killed worker loses what it did since the last report.
        seconds_between_pauses: until a report in the middle of an epoch.
    """

    def __init__(
        self,
        *,
        backbone: ray.ObjectRef,
        backbone_name: str,
        backbone_identity: str,
        float64: bool,
        plan: Plan,
        folder: str,
        say: Callable[[str], None] = print,
        cache_shards: bool = False,
        seconds_between_reports: float = SECONDS_BETWEEN_REPORTS,
        seconds_between_pauses: float = SECONDS_BETWEEN_PAUSES,
    ) -> None:
        config = {
            "backbone": backbone,
            "backbone_name": backbone_name,
            "backbone_identity": backbone_identity,
            "float64": float64,
            "threads": plan.cpus_per_worker,
            "device_share": plan.gpus_per_worker or 1.0,
            "cache_shards": cache_shards,
            "seconds_between_reports": seconds_between_reports,
            "seconds_between_pauses": seconds_between_pauses,
        }
        self._choosing = threading.Lock()
        self._packs = [_Pack(config, plan, join(folder, str(i)), say) for i in range(plan.packs)]

    def train(
        self,
        specs: Sequence[RunSpec],
        *,
        folder: str,
        attempt: int,
        on_rows: OnRows,
        say: Callable[[str], None] = print,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[RunResult]:
        """As `pipeline.training.driver.train_unit`, in a pack with the units of others that call this meanwhile."""
        if stopped():
            raise Stopped(folder)
        resume = checkpoints.find(folder, say=say)
        if resume is None or not resume.finished:
            content = {"specs": [spec.to_dict() for spec in specs], "folder": folder}
            unit = _Unit(name=specs[0].task, content=content, on_rows=on_rows, say=say)
            self._train(unit, attempt, stopped)
            resume = checkpoints.find(folder, say=say)
        if resume is None or not resume.finished:
            raise TrainingError(f"{folder}: training ended without a whole checkpoint")
        results = resume.results()
        for i, run in enumerate(results):
            on_rows(i, run.history)
        return results

    def _train(self, unit: _Unit, attempt: int, stopped: Callable[[], bool]) -> None:
        with self._choosing:
            pack = min(self._packs, key=len)
            pack.add(unit, attempt)
        deadline: float | None = None
        while not unit.done.wait(SECONDS_BETWEEN_ROWS):
            if not stopped():
                continue
            if deadline is None:
                deadline = time.monotonic() + GRACE_S
                pack.let_go(unit)
            elif time.monotonic() > deadline:
                raise Stopped("its worker did not save its state in time")
        if unit.error is not None:
            raise unit.error

    def close(self) -> None:
        """Ends the workers."""
        for pack in self._packs:
            pack.close()


class _Pack:
    """One worker at a time, in a thread that is there while there are units."""

    def __init__(self, config: dict[str, Any], plan: Plan, folder: str, say: Callable[[str], None]) -> None:
        self._config, self._plan, self._folder, self._say = config, plan, folder, say
        self._lock = threading.RLock()
        self._starts = itertools.count()
        self._units: dict[str, _Unit] = {}
        self._in_training: set[str] = set()
        self._most = plan.pack
        self._mailbox: Mailbox | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._start, self._heard = 0, False

    def __len__(self) -> int:
        return len(self._units)

    def add(self, unit: _Unit, attempt: int) -> None:
        """To be trained; its ``done`` tells when."""
        with self._lock:
            unit.content["attempt"] = attempt
            self._units[unit.name] = unit
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pack", daemon=True)
                self._thread.start()
            self._send()

    def let_go(self, unit: _Unit) -> None:
        """Once its state is saved, if it is in training."""
        with self._lock:
            unit.leaving = True
            if self._mailbox is not None and unit.name in self._in_training:
                self._mailbox.tell(LEAVE, unit.name)
            else:
                self._end(unit, Stopped(unit.name))

    def close(self) -> None:
        """The worker ends; units that it has leave."""
        self._closed = True
        if self._thread is not None:
            self._thread.join(GRACE_S)
        checkpoints.discard(self._folder)

    def _send(self) -> None:
        """Units that wait to the worker, as far as there is room."""
        for unit in list(self._units.values()):
            if self._mailbox is None or len(self._in_training) >= self._most:
                return
            if unit.name not in self._in_training:
                self._in_training.add(unit.name)
                content = {**unit.content, "attempt": f"{unit.content['attempt']:04d}-{os.getpid()}-{self._start}"}
                self._mailbox.tell(JOIN, unit.name, content)

    def _end(self, unit: _Unit, error: Exception | None) -> None:
        self._units.pop(unit.name, None)
        self._in_training.discard(unit.name)
        unit.end(error)
        self._send()

    def _run(self) -> None:
        restarts = 0
        while True:
            with self._lock:
                for unit in [unit for unit in self._units.values() if unit.leaving]:
                    self._end(unit, Stopped(unit.name))
                if not self._units or self._closed:
                    self._thread = None
                    for unit in list(self._units.values()):
                        self._end(unit, Stopped(unit.name))
                    return
                self._start = next(self._starts)
                self._heard = False
                self._mailbox = mailbox = Mailbox()
                self._send()
            try:
                trainer = torch_trainer(
                    work,
                    {**self._config, "mailbox": mailbox.handle},
                    self._plan,
                    folder=self._folder,
                    name=f"{os.getpid()}-{self._start}",
                )
                error = run_trainer(trainer, mailbox, self._told, lambda: self._closed)
            except Exception as failure:  # of what is around it: nobody else would end those that wait
                error = failure
            with self._lock:
                mailbox.close()
                self._mailbox = None
                under_way = [self._units[name] for name in self._in_training]
                self._in_training.clear()
                if error is None or isinstance(error, Stopped):
                    continue
                restarts = 0 if self._heard else restarts + 1
                self._recover(error, under_way, restarts)

    def _recover(self, error: BaseException, under_way: list[_Unit], restarts: int) -> None:
        """After a worker's end by an error: what becomes of the units that it had."""
        names, reason = ", ".join(unit.name for unit in under_way), (str(error).splitlines() or [""])[0]
        together = not isinstance(error, RayError) and len(under_way) > 1
        if together:
            self._most = len(under_way) // 2
        elif is_mistake(error) or restarts > MAX_RESTARTS:
            for unit in under_way:
                self._end(unit, TrainingError(f"{error}" if is_mistake(error) else f"failed with {error!r}"))
            return
        then = f"{self._most} at a time" if together else f"{restarts} of {MAX_RESTARTS}"
        self._say(f"{names}: {type(error).__name__}: {reason}; again from what was saved ({then})")

    def _told(self, what: str, name: str, *more: Any) -> None:
        """By the worker, of a unit."""
        self._heard = self._heard or what in (ROWS, ENDED)
        with self._lock:
            unit = self._units.get(name)
        if unit is None:
            return
        if what == GOES_ON:
            unit.say(f"{name}: going on after {more[0]:.3g} epochs")
        elif what == ROWS:
            unit.restarts = 0
            self._tell_rows(unit, *more)
        elif what == FAILED:
            self._failed(unit, *more)
        else:
            with self._lock:
                self._end(unit, {ENDED: None, LEFT: Stopped(name)}[what])

    def _tell_rows(self, unit: _Unit, run: int, rows: list[dict[str, Any]]) -> None:
        try:
            unit.on_rows(run, rows)
        except Exception as error:  # its own: the others' rows are to come through
            with self._lock:
                if self._mailbox is not None:
                    self._mailbox.tell(LEAVE, unit.name)
                self._end(unit, error)

    def _failed(self, unit: _Unit, mistake: bool, text: str) -> None:
        """Alone, in the pack; it is tried again where that may help."""
        with self._lock:
            if mistake or unit.restarts == MAX_RESTARTS:
                self._end(unit, TrainingError(text))
                return
            unit.restarts += 1
            self._in_training.discard(unit.name)
            self._send()
        unit.say(f"{unit.name}: {text}; again from the last report ({unit.restarts} of {MAX_RESTARTS})")
