"""A lease on a piece of work: if several drivers want to do it, one of them does, as long as it lives.

A lease is a folder of small files. Attempt n of the work belongs to the driver that wrote `<n>.json` first (a file is
put once, with the owner in it) and that keeps changing `<n>.beat`. An owner whose beat has not changed for EXPIRY_S is
replaced by attempt n + 1; an owner that was a process of this machine and is gone is replaced at once. Nothing here
compares the clocks of two machines. An owner that was only asleep finds, before it commits anything, that its attempt
is not the last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.storage import files
from pipeline.storage.errors import PassingError, StorageError

EXPIRY_S = 30.0
"""An owner without a sign of life for so long is replaced."""
HEARTBEAT_S = 5.0
"""The time between two signs of life."""
_RELEASED = b"released"
_NAME = re.compile(r"(\d{6})\.(json|beat)")


class LeaseLostError(Exception):
    """Another driver has taken the work over, because this one showed no sign of life for too long."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lease."""

    host: str
    """The machine's name, for people."""
    machine: str
    """Identifies this boot of this machine or container, within which a process number means one process."""
    pid: int
    started: int
    """When the process began, as the kernel counts it; another process may have its number later."""
    nonce: str
    """Tells two threads of a process apart."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def of_this_process(cls) -> Owner:
        """A new owner."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            nonce=secrets.token_hex(8),
        )

    def is_gone(self) -> bool:
        """Whether it was a process of this machine and has ended. False for another machine, which cannot be seen."""
        if self.machine != _machine():
            return False
        try:
            return _started(self.pid) != self.started or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return True


class Lease:
    """A lease that is held, made by `hold`."""

    def __init__(self, folder: str, attempt: int, owner: Owner) -> None:
        self.attempt = attempt
        """From 1; every takeover adds one."""
        self.owner = owner
        self.lost = threading.Event()
        """Set as soon as this process has noticed that another took over."""
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)

    def check(self) -> None:
        """Raises LeaseLostError if another driver has taken over. Call it just before a result is committed."""
        if self.lost.is_set() or _last_attempt(self._folder) > self.attempt:
            self.lost.set()
            raise LeaseLostError(f"{self._folder}: attempt {self.attempt} of {self.owner} was taken over")

    def _start(self) -> None:
        self._thread.start()

    def _end(self) -> None:
        self._stop.set()
        self._thread.join(HEARTBEAT_S)  # the thread may wait for storage
        with contextlib.suppress(StorageError, OSError), files.brief():  # the lease then expires
            files.write_bytes(_beat_file(self._folder, self.attempt), _RELEASED)

    def _keep_alive(self) -> None:
        beat = 0
        while not self._stop.wait(HEARTBEAT_S):
            beat += 1
            try:
                with files.brief():  # a request that hangs must not outlast the lease; the next beat tries again
                    self.check()
                    files.write_bytes(_beat_file(self._folder, self.attempt), f"{self.owner.nonce} {beat}".encode())
            except LeaseLostError:
                return
            except (StorageError, OSError):
                continue  # storage may refuse for less than EXPIRY_S; after that the lease is lost


@contextlib.contextmanager
def hold(
    folder: str, *, waiting: Callable[[Owner], None] = lambda owner: None, stop: threading.Event | None = None
) -> Iterator[Lease | None]:
    """Holds the lease of a folder, local or s3://, for a block; waits while a living driver has it.

    Args:
        folder: of this work alone.
        waiting: is called once with the owner if the lease is taken.
        stop: once it is set, the waiting ends and the block gets None instead of a lease.
    """
    owner = Owner.of_this_process()
    attempt = _acquire(folder, owner, waiting, stop or threading.Event())
    if attempt is None:
        yield None
        return
    lease = Lease(folder, attempt, owner)
    lease._start()
    try:
        yield lease
    finally:
        lease._end()


def _acquire(folder: str, owner: Owner, waiting: Callable[[Owner], None], stop: threading.Event) -> int | None:
    told = False
    seen: tuple[int, bytes | None] | None = None
    since = 0.0
    while not stop.is_set():
        attempt = 0
        now = time.monotonic()  # taken before the files are read: a beat may come meanwhile
        try:
            last = _last(folder)
        except PassingError:
            seen = None  # a silent owner and silent storage look the same
            stop.wait(min(1.0, EXPIRY_S / 10))
            continue
        if last is not None:
            attempt, other, beat = last
            if other == owner:
                return attempt  # written below, but the answer was lost and the second try found the file
            if (attempt, beat) != seen:
                seen, since = (attempt, beat), now
            if not (beat == _RELEASED or other.is_gone() or now - since >= EXPIRY_S):
                if not told:
                    told = True
                    waiting(other)
                stop.wait(min(1.0, EXPIRY_S / 10))
                continue
        if files.put_once(_owner_file(folder, attempt + 1), json.dumps(vars(owner)).encode()):
            if _last_attempt(folder) != attempt + 1:
                continue  # an old number that became free again: others went on while this driver slept
            with contextlib.suppress(StorageError, OSError):
                _tidy(folder, attempt)
            return attempt + 1
    return None


def _tidy(folder: str, attempt: int) -> None:
    """Removes the files of attempts before ``attempt``. That one and the next stay, so that numbers only grow."""
    for name in files.list_prefix(folder):
        if (match := _NAME.fullmatch(name)) and int(match[1]) < attempt:
            files.delete(files.join(folder, name))


def _last_attempt(folder: str) -> int:
    """The last attempt's number; 0 if there was none."""
    names = [name for name in files.list_prefix(folder) if name.endswith(".json")]
    return max((int(name.removesuffix(".json")) for name in names), default=0)


def _last(folder: str) -> tuple[int, Owner, bytes | None] | None:
    """The last attempt, its owner and its last sign of life, if any; None if there was no attempt."""
    while (attempt := _last_attempt(folder)) != 0:
        try:
            fields: dict[str, Any] = json.loads(files.read_bytes(_owner_file(folder, attempt)))
        except FileNotFoundError:
            continue  # another driver took over meanwhile and removed it
        beat = None
        with contextlib.suppress(FileNotFoundError):
            beat = files.read_bytes(_beat_file(folder, attempt))
        return attempt, Owner(**fields), beat
    return None


def _owner_file(folder: str, attempt: int) -> str:
    return files.join(folder, f"{attempt:06d}.json")


def _beat_file(folder: str, attempt: int) -> str:
    return files.join(folder, f"{attempt:06d}.beat")


def _started(pid: int) -> int:
    """Clock ticks since the machine's boot, which no change of its clock moves; Unix time where there is no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return int(psutil.Process(pid).create_time())
    return int(stat.read_text().rpartition(")")[2].split()[19])


def _machine() -> str:
    """The boot and the process namespace: two containers on one kernel share a boot, not their process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"{socket.gethostname()} since {psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
