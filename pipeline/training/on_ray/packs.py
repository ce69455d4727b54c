"""The driver's end of packs: each pack has a worker that trains several tasks in one batch.

A unit joins the pack with the fewest units. A pack's worker starts with its first unit and ends soon after its last;
each unit leaves when it has finished. A killed worker is started again, and its units resume from what each had saved.
If the joint computation fails (a GPU runs out of memory, say), the pack trains only half as many units at a time from
then on. In a pack of one, the unit fails.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline.cluster.resources import Plan
from pipeline.console.progress import epochs_text
from pipeline.storage.files import StorageError, join
from pipeline.training import checkpoints
from pipeline.training.checkpoints import RunResult
from pipeline.training.on_ray.driver import (
    GRACE_S,
    MAX_RESTARTS,
    SECONDS_BETWEEN_PAUSES,
    SECONDS_BETWEEN_REPORTS,
    SECONDS_BETWEEN_ROWS,
    OnRows,
    finished_results,
    run_trainer,
    torch_trainer,
)
from pipeline.training.on_ray.mailbox import Mailbox
from pipeline.training.on_ray.pack_worker import ENDED, FAILED, GOES_ON, JOIN, LEAVE, LEFT, ROWS, SAVED, TOGETHER, work
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import TrainingError, is_mistake
from pipeline.training.unit import RunSpec


@dataclass(eq=False, kw_only=True)
class _Unit:
    task: str
    key: str
    """Key of this training of the task, unique within this driver."""
    specs: list[dict[str, Any]]
    folder: str
    attempt: int
    on_rows: OnRows
    say: Callable[[str], None]
    joins: int = 0
    restarts: int = 0
    """Number of restarts in a row, without a save between them."""
    leaving: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def joining(self) -> dict[str, Any]:
        """The message with which the unit joins a worker. Each time, its attempt writes in a folder of its own."""
        self.joins += 1
        return {"specs": self.specs, "folder": self.folder, "attempt": f"{self.attempt:04d}-{self.joins}"}

    def end(self, error: BaseException | None) -> None:
        """Ends the unit and wakes the thread that waits for it."""
        self.error = error
        self.done.set()


class Packs:
    """All packs of a fan-out: one for each worker that the plan runs at once.

    Args:
        backbone: Returned by `pipeline.training.on_ray.driver.put_backbone`.
        backbone_name: The backbone's name.
        backbone_identity: The backbone's identity.
        float64: Whether the units compute in float64. Either all of them do, or none.
        plan: The workers, and the number of tasks in a pack.
        folder: URI for Ray's own files.
        say: Prints a line.
        cache_shards: See `pipeline.training.unit.build_run`.
        seconds_between_reports: Least time between reports at the ends of epochs. A killed worker loses what it did
            since the last report.
        seconds_between_pauses: Least time before a report in the middle of an epoch.
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
        self._choosing, self._numbers = threading.Lock(), itertools.count()
        own = join(folder, uuid.uuid4().hex[:8])  # another driver may use the same folder
        self._packs = [_Pack(config, plan, join(own, str(i)), say) for i in range(plan.packs)]

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
        """Trains like `pipeline.training.on_ray.driver.train_unit`, but in a pack with the units of other callers."""
        if stopped():
            raise Stopped(folder)
        resume = checkpoints.find(folder, say=say)
        if resume is None or not resume.finished:
            unit = _Unit(
                task=specs[0].task,
                key=f"{specs[0].task} {next(self._numbers)}",
                specs=[spec.to_dict() for spec in specs],
                folder=folder,
                attempt=attempt,
                on_rows=on_rows,
                say=say,
            )
            self._train(unit, stopped)
            resume = checkpoints.find(folder, say=say)
        return finished_results(folder, resume, on_rows)

    def _train(self, unit: _Unit, stopped: Callable[[], bool]) -> None:
        with self._choosing:
            pack = min(self._packs, key=len)
            pack.add(unit)
        deadline: float | None = None
        while not unit.done.wait(SECONDS_BETWEEN_ROWS):
            if not stopped():
                continue
            if deadline is None:
                deadline = time.monotonic() + GRACE_S
                pack.let_go(unit)
            elif time.monotonic() > deadline:
                pack.forget(unit, Stopped("its worker did not save its state in time"))
        if unit.error is not None:
            raise unit.error

    def close(self) -> None:
        """Ends the workers; their units leave."""
        for pack in self._packs:
            pack.closed.set()
        deadline = time.monotonic() + GRACE_S
        for pack in self._packs:
            pack.wait(deadline - time.monotonic())


class _Pack:
    """One pack: it runs one worker at a time, in a thread that lives while there are units."""

    def __init__(self, config: dict[str, Any], plan: Plan, folder: str, say: Callable[[str], None]) -> None:
        self._config, self._plan, self._folder, self._say = config, plan, folder, say
        self.closed = threading.Event()
        self._lock = threading.RLock()
        self._starts = itertools.count()
        self._units: dict[str, _Unit] = {}
        self._in_training: set[str] = set()
        self._most = plan.pack
        self._mailbox: Mailbox | None = None
        self._thread: threading.Thread | None = None
        # About the current worker: whether it has saved anything, and the text of an error in the joint computation.
        self._heard, self._together = False, ""

    def __len__(self) -> int:
        return len(self._units)

    def add(self, unit: _Unit) -> None:
        """Adds a unit to train; its ``done`` is set when it has ended."""
        with self._lock:
            self._units[unit.key] = unit
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pack", daemon=True)
                self._thread.start()
            self._send()

    def let_go(self, unit: _Unit) -> None:
        """Lets a unit leave: after its state is saved if it is in training, else at once."""
        with self._lock:
            unit.leaving = True
            if self._mailbox is not None and unit.key in self._in_training:
                self._mailbox.tell(LEAVE, unit.key)
            else:
                self._end(unit, Stopped(unit.task))

    def forget(self, unit: _Unit, error: Exception) -> None:
        """Ends a unit at once, whatever the worker does. Later messages about it are ignored."""
        with self._lock:
            self._end(unit, error)

    def wait(self, seconds: float) -> None:
        """Waits for the worker to end, once the pack is ``closed``, then removes Ray's files."""
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, seconds))
        with contextlib.suppress(StorageError, OSError):  # nobody needs these files
            checkpoints.discard(self._folder)

    def _send(self) -> None:
        """Sends waiting units to the worker while there is room."""
        for unit in list(self._units.values()):
            if self._mailbox is None or len(self._in_training) >= self._most:
                return
            if unit.key not in self._in_training and not unit.leaving:
                self._in_training.add(unit.key)
                self._mailbox.tell(JOIN, unit.key, unit.joining())

    def _end(self, unit: _Unit, error: BaseException | None) -> None:
        self._units.pop(unit.key, None)
        self._in_training.discard(unit.key)
        unit.end(error)
        self._send()

    def _run(self) -> None:
        try:
            restarts = 0
            while self._begin():
                error = self._work()
                under_way = self._ended()
                if error is not None and not isinstance(error, Stopped):
                    restarts = (0 if self._heard else restarts) + 1
                    self._recover(error, under_way, restarts)
        except BaseException as error:  # nobody else would wake the waiting threads
            with self._lock:
                self._thread = self._mailbox = None
                waiting, self._units = list(self._units.values()), {}
                self._in_training.clear()
            for unit in waiting:
                unit.end(error)

    def _begin(self) -> bool:
        """Opens a mailbox with the units to train; returns False if there are none."""
        with self._lock:
            for unit in list(self._units.values()):
                if unit.leaving or self.closed.is_set():
                    self._end(unit, Stopped(unit.task))
            if not self._units:
                self._thread = None
                return False
            self._heard, self._together = False, ""
            self._mailbox = Mailbox()
            self._send()
            return True

    def _work(self) -> BaseException | None:
        """Runs a worker until it ends; returns its error, or None if it was idle."""
        assert self._mailbox is not None
        config = {**self._config, "mailbox": self._mailbox.handle}
        try:
            trainer = torch_trainer(work, config, self._plan, folder=self._folder, name=str(next(self._starts)))
            return run_trainer(trainer, self._mailbox, self._told, self.closed.is_set)
        except Exception as error:
            return error

    def _ended(self) -> list[_Unit]:
        """Closes the mailbox of a worker that has ended; returns the units that it had."""
        with self._lock:
            assert self._mailbox is not None
            mailbox, self._mailbox = self._mailbox, None
            under_way = [unit for unit in self._units.values() if unit.key in self._in_training]
            self._in_training.clear()
        mailbox.close()
        return under_way

    def _recover(self, error: BaseException, under_way: list[_Unit], restarts: int) -> None:
        """After an error ended a worker, lets its units fail or train again."""
        reason = self._together or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        alone = len(under_way) <= 1
        # A worker that is lost twice before it saved anything may have run out of memory.
        if not alone and (self._together or 1 < restarts <= MAX_RESTARTS):
            self._most = len(under_way) // 2
        elif restarts > MAX_RESTARTS or (alone and self._together and is_mistake(error)):
            with self._lock:
                for unit in under_way:
                    self._end(unit, TrainingError(reason))
            return
        names = ", ".join(unit.task for unit in under_way)
        self._say(
            f"{names}: {reason}; again from what was saved ({restarts} of {MAX_RESTARTS}, {self._most} at a time)"
        )

    def _told(self, what: str, key: str, *more: Any) -> None:
        """Handles a message from the worker, about one unit or about all."""
        if what == TOGETHER:
            (self._together,) = more
            return
        with self._lock:
            unit = self._units.get(key)
        if unit is None:
            return
        if what == GOES_ON:
            unit.say(f"{unit.task}: going on after {epochs_text(more[0])}")
        elif what == SAVED:
            self._heard, unit.restarts = True, 0
        elif what == ROWS:
            self._tell_rows(unit, *more)
        elif what == FAILED:
            self._failed(unit, *more)
        else:
            with self._lock:
                self._end(unit, {ENDED: None, LEFT: Stopped(unit.task)}[what])

    def _tell_rows(self, unit: _Unit, run: int, rows: list[dict[str, Any]]) -> None:
        try:
            unit.on_rows(run, rows)
        except Exception as error:  # only this unit fails: the rows of others must still arrive
            with self._lock:
                if self._mailbox is not None:
                    self._mailbox.tell(LEAVE, unit.key)
                self._end(unit, error)

    def _failed(self, unit: _Unit, mistake: bool, text: str) -> None:
        """Handles the failure of a single unit; it is retried if that may help."""
        with self._lock:
            if unit.leaving:
                self._end(unit, Stopped(f"{unit.task}: {text}"))
                return
            if mistake or unit.restarts == MAX_RESTARTS:
                self._end(unit, TrainingError(text))
                return
            unit.restarts += 1
            self._in_training.discard(unit.key)
            self._send()
        unit.say(f"{unit.task}: {text}; again from the last report ({unit.restarts} of {MAX_RESTARTS})")
