"""The driver's end of packs: workers that train several tasks in one batch, each task as long as it takes.

A unit goes to the pack with the fewest. A pack's worker starts with its first unit and ends soon after its last; one
that is killed is started again, and its units go on from what each had saved. Where something goes wrong while all
compute together (a GPU's memory does not suffice, say), half of them wait for the others from then on; in a pack of
one it is that one's fault.
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
    """Of this training of the task, by this driver."""
    specs: list[dict[str, Any]]
    folder: str
    attempt: int
    on_rows: OnRows
    say: Callable[[str], None]
    joins: int = 0
    restarts: int = 0
    """Without anything heard of it in between."""
    leaving: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def joining(self) -> dict[str, Any]:
        """For a worker. What each writes has a place of its own."""
        self.joins += 1
        return {"specs": self.specs, "folder": self.folder, "attempt": f"{self.attempt:04d}-{self.joins}"}

    def end(self, error: BaseException | None) -> None:
        """Wakes who waits for it."""
        self.error = error
        self.done.set()


class Packs:
    """As many packs as the plan has workers at once.

    Args:
        backbone: what `pipeline.training.on_ray.driver.put_backbone` returned; the next two arguments are its name and
            its identity.
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
        self._choosing, self._numbers = threading.Lock(), itertools.count()
        own = join(folder, uuid.uuid4().hex[:8])  # another driver may do the same
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
        """Like `pipeline.training.on_ray.driver.train_unit`, but in a pack with the units of concurrent callers."""
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
        """Ends the workers; units that they have leave."""
        for pack in self._packs:
            pack.closed.set()
        deadline = time.monotonic() + GRACE_S
        for pack in self._packs:
            pack.wait(deadline - time.monotonic())


class _Pack:
    """One worker at a time, in a thread that is there while there are units."""

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
        # Of the worker there is: whether anything was saved, and what it says went wrong where all compute together.
        self._heard, self._together = False, ""

    def __len__(self) -> int:
        return len(self._units)

    def add(self, unit: _Unit) -> None:
        """To be trained; its ``done`` tells when."""
        with self._lock:
            self._units[unit.key] = unit
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pack", daemon=True)
                self._thread.start()
            self._send()

    def let_go(self, unit: _Unit) -> None:
        """Once its state is saved, if it is in training."""
        with self._lock:
            unit.leaving = True
            if self._mailbox is not None and unit.key in self._in_training:
                self._mailbox.tell(LEAVE, unit.key)
            else:
                self._end(unit, Stopped(unit.task))

    def forget(self, unit: _Unit, error: Exception) -> None:
        """It ends at once, whatever the worker does; what it still tells of it is passed over."""
        with self._lock:
            self._end(unit, error)

    def wait(self, seconds: float) -> None:
        """For the end of the worker, once it is ``closed``."""
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, seconds))
        with contextlib.suppress(StorageError, OSError):  # files of Ray's that nobody needs
            checkpoints.discard(self._folder)

    def _send(self) -> None:
        """Units that wait to the worker, as far as there is room."""
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
        except BaseException as error:  # nobody else would wake those that wait
            with self._lock:
                self._thread = self._mailbox = None
                waiting, self._units = list(self._units.values()), {}
                self._in_training.clear()
            for unit in waiting:
                unit.end(error)

    def _begin(self) -> bool:
        """Whether there is something to train, and then a mailbox with it."""
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
        """Until the worker ends: idle, stopped, or by what is returned."""
        assert self._mailbox is not None
        config = {**self._config, "mailbox": self._mailbox.handle}
        try:
            trainer = torch_trainer(work, config, self._plan, folder=self._folder, name=str(next(self._starts)))
            return run_trainer(trainer, self._mailbox, self._told, self.closed.is_set)
        except Exception as error:
            return error

    def _ended(self) -> list[_Unit]:
        """The units that the worker had."""
        with self._lock:
            assert self._mailbox is not None
            mailbox, self._mailbox = self._mailbox, None
            under_way = [unit for unit in self._units.values() if unit.key in self._in_training]
            self._in_training.clear()
        mailbox.close()
        return under_way

    def _recover(self, error: BaseException, under_way: list[_Unit], restarts: int) -> None:
        """After a worker's end by an error: what becomes of the units that it had."""
        reason = self._together or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        alone = len(under_way) <= 1
        # A worker that is lost twice with nothing saved may have been ended for want of memory.
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
        """By the worker, of a unit or of all."""
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
        except Exception as error:  # its own: the others' rows are to come through
            with self._lock:
                if self._mailbox is not None:
                    self._mailbox.tell(LEAVE, unit.key)
                self._end(unit, error)

    def _failed(self, unit: _Unit, mistake: bool, text: str) -> None:
        """Alone, in the pack; it is tried again where that may help."""
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
