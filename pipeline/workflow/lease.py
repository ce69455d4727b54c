"""A lease on a piece of work: of several drivers that want to do it, one does, for as long as it lives.

A lease is a folder of small files. Attempt n of the work belongs to who wrote `<n>.json` first (put once: who, where,
since when) and keeps `<n>.beat` changing. An owner whose beat has not changed for EXPIRY_S is taken over by attempt
n + 1; one that was a process of this machine and is gone, at once. Nothing here compares clocks of two machines, and
an owner that was only asleep finds, before it commits anything, that its attempt is not the last.
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
"""Without a sign of life for so long, an owner is taken over."""
HEARTBEAT_S = 5.0
"""Between two signs of life."""
_RELEASED = b"released"
_NAME = re.compile(r"(\d{6})\.(json|beat)")


class LeaseLostError(Exception):
    """Another driver has taken the work over, since this one showed no sign of life for too long."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lease."""

    host: str
    """Its name, for people."""
    machine: str
    """What this boot of this machine, or container, alone has: where its process numbers mean something."""
    pid: int
    started: int
    """When the process began, as the kernel counts it: its number may be another's later."""
    nonce: str
    """Tells two threads of a process apart."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def of_this_process(cls) -> Owner:
        """A new one."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            nonce=secrets.token_hex(8),
        )

    def is_gone(self) -> bool:
        """Whether it was a process of this machine and runs no more; of another machine nobody here can tell."""
        if self.machine != _machine():
            return False
        try:
            return _started(self.pid) != self.started or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return True


class Lease:
    """Held; of `hold`."""

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
        """Raises LeaseLostError if another has taken over; to be asked just before a result is committed."""
        if self.lost.is_set() or _last_attempt(self._folder) > self.attempt:
            self.lost.set()
            raise LeaseLostError(f"{self._folder}: attempt {self.attempt} of {self.owner} was taken over")

    def _start(self) -> None:
        self._thread.start()

    def _end(self) -> None:
        self._stop.set()
        self._thread.join(HEARTBEAT_S)  # it may wait for storage
        with contextlib.suppress(StorageError, OSError), files.brief():  # then it expires
            files.write_bytes(_beat_file(self._folder, self.attempt), _RELEASED)

    def _keep_alive(self) -> None:
        beat = 0
        while not self._stop.wait(HEARTBEAT_S):
            beat += 1
            try:
                with files.brief():  # a request that hangs must not outlast the lease: the next beat asks again
                    self.check()
                    files.write_bytes(_beat_file(self._folder, self.attempt), f"{self.owner.nonce} {beat}".encode())
            except LeaseLostError:
                return
            except (StorageError, OSError):
                continue  # storage that refuses for less than EXPIRY_S costs nothing; for longer, or silent, the lease


@contextlib.contextmanager
def hold(
    folder: str, *, waiting: Callable[[Owner], None] = lambda owner: None, stop: threading.Event | None = None
) -> Iterator[Lease | None]:
    """Holds the lease of a folder, local or s3://, for a block; waits while another lives who has it.

    Args:
        folder: Of this work alone.
        waiting: Told once who has it, when it is not to be had at once.
        stop: Once set, no longer waited for: None is given instead of a lease.
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
        now = time.monotonic()  # before what is read: a beat may come while it is
        try:
            last = _last(folder)
        except PassingError:
            seen = None  # who is silent cannot be told from storage that is
            stop.wait(min(1.0, EXPIRY_S / 10))
            continue
        if last is not None:
            attempt, other, beat = last
            if other == owner:
                return attempt  # written below; the answer to that was lost, and asked again, it was there already
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
                continue  # an old number, free again: others went on while this one slept
            with contextlib.suppress(StorageError, OSError):
                _tidy(folder, attempt)
            return attempt + 1
    return None


def _tidy(folder: str, attempt: int) -> None:
    """Removes the files of attempts before one; that one's and the next stay, so that numbers only ever grow."""
    for name in files.list_prefix(folder):
        if (match := _NAME.fullmatch(name)) and int(match[1]) < attempt:
            files.delete(files.join(folder, name))


def _last_attempt(folder: str) -> int:
    """0 where nobody ever had it."""
    names = [name for name in files.list_prefix(folder) if name.endswith(".json")]
    return max((int(name.removesuffix(".json")) for name in names), default=0)


def _last(folder: str) -> tuple[int, Owner, bytes | None] | None:
    """The last attempt, its owner and the last sign of life, if there is one; None where nobody ever had it."""
    while (attempt := _last_attempt(folder)) != 0:
        try:
            fields: dict[str, Any] = json.loads(files.read_bytes(_owner_file(folder, attempt)))
        except FileNotFoundError:
            continue  # taken over, and tidied away, in between
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
    """Clock ticks from the machine's boot, which no change of its clock moves; where there is no /proc, Unix time."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return int(psutil.Process(pid).create_time())
    return int(stat.read_text().rpartition(")")[2].split()[19])


def _machine() -> str:
    """Two containers on one kernel have a boot in common, not the numbers of their processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"{socket.gethostname()} since {psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
