"""A lease on a piece of work: only one of several drivers does the work at a time.

A lease is a folder of small files. Attempt n of the work belongs to the driver that first wrote `<n>.json` (which
identifies the driver) and that keeps changing `<n>.beat`. If the beat has not changed for EXPIRY_S, another driver
takes over with attempt n + 1. If the owner was a process of this machine and has ended, the takeover is immediate. The
clocks of two machines are never compared. An owner that was only asleep checks before it commits anything, and finds
that its attempt is no longer the last.
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
"""Time without a heartbeat after which another driver takes over."""
HEARTBEAT_S = 5.0
"""Time between two heartbeats."""
_RELEASED = b"released"
_NAME = re.compile(r"(\d{6})\.(json|beat)")


class LeaseLostError(Exception):
    """Another driver has taken over the work, because this one gave no heartbeat for too long."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process and thread that hold a lease."""

    host: str
    """Name of the host, for messages."""
    machine: str
    """Identifies this boot of this machine or container; process ids are only comparable within it."""
    pid: int
    started: int
    """Start time by the kernel's count; it distinguishes the process from a later one with the same id."""
    nonce: str
    """A random text that distinguishes two threads of a process."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def of_this_process(cls) -> Owner:
        """A new owner in this process."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            nonce=secrets.token_hex(8),
        )

    def is_gone(self) -> bool:
        """Whether the owner was a process of this machine and has ended; False for other machines (state unknown)."""
        if self.machine != _machine():
            return False
        try:
            return _started(self.pid) != self.started or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return True


class Lease:
    """A lease that this process holds; made by `hold`."""

    def __init__(self, folder: str, attempt: int, owner: Owner) -> None:
        self.attempt = attempt
        """Number of the attempt, from 1; every takeover adds one."""
        self.owner = owner
        self.lost = threading.Event()
        """Set when this process notices that another has taken over."""
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)

    def check(self) -> None:
        """Raises LeaseLostError if another has taken over. Call it just before committing a result."""
        if self.lost.is_set() or _last_attempt(self._folder) > self.attempt:
            self.lost.set()
            raise LeaseLostError(f"{self._folder}: attempt {self.attempt} of {self.owner} was taken over")

    def _start(self) -> None:
        self._thread.start()

    def _end(self) -> None:
        self._stop.set()
        self._thread.join(HEARTBEAT_S)  # the thread may be waiting for storage
        with contextlib.suppress(StorageError, OSError), files.brief():  # if this fails, the lease expires
            files.write_bytes(_beat_file(self._folder, self.attempt), _RELEASED)

    def _keep_alive(self) -> None:
        beat = 0
        while not self._stop.wait(HEARTBEAT_S):
            beat += 1
            try:
                with files.brief():  # a hanging request must not outlast the lease; the next heartbeat retries
                    self.check()
                    files.write_bytes(_beat_file(self._folder, self.attempt), f"{self.owner.nonce} {beat}".encode())
            except LeaseLostError:
                return
            except (StorageError, OSError):
                continue  # harmless unless storage fails for longer than EXPIRY_S: then the lease may be lost


@contextlib.contextmanager
def hold(
    folder: str, *, waiting: Callable[[Owner], None] = lambda owner: None, stop: threading.Event | None = None
) -> Iterator[Lease | None]:
    """Holds the lease of a folder, local or s3://, during a block; waits while a living driver holds it.

    Args:
        folder: Folder for the lease of this piece of work only.
        waiting: Called once with the owner if the lease is taken.
        stop: Once set, waiting ends and the block gets None instead of a lease.
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
        now = time.monotonic()  # taken before the read: a heartbeat may arrive during it
        try:
            last = _last(folder)
        except PassingError:
            seen = None  # the owner may have given heartbeats that could not be read: count from the start
            stop.wait(min(1.0, EXPIRY_S / 10))
            continue
        if last is not None:
            attempt, other, beat = last
            if other == owner:
                return attempt  # the write below succeeded, but its answer was lost and the retry found the file
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
                continue  # an old number, already removed: others went on while this process slept
            with contextlib.suppress(StorageError, OSError):
                _tidy(folder, attempt)
            return attempt + 1
    return None


def _tidy(folder: str, attempt: int) -> None:
    """Removes the files of all earlier attempts. Those of `attempt` and the next stay, so that numbers only grow."""
    for name in files.list_prefix(folder):
        if (match := _NAME.fullmatch(name)) and int(match[1]) < attempt:
            files.delete(files.join(folder, name))


def _last_attempt(folder: str) -> int:
    """Number of the last attempt; 0 if nobody ever held the lease."""
    names = [name for name in files.list_prefix(folder) if name.endswith(".json")]
    return max((int(name.removesuffix(".json")) for name in names), default=0)


def _last(folder: str) -> tuple[int, Owner, bytes | None] | None:
    """The last attempt, its owner and its last heartbeat, if any; None if nobody ever held the lease."""
    while (attempt := _last_attempt(folder)) != 0:
        try:
            fields: dict[str, Any] = json.loads(files.read_bytes(_owner_file(folder, attempt)))
        except FileNotFoundError:
            continue  # taken over and removed in between
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
    """When the process started: in ticks since boot, which no clock change affects, or in Unix time without /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return int(psutil.Process(pid).create_time())
    return int(stat.read_text().rpartition(")")[2].split()[19])


def _machine() -> str:
    """The boot id and the process namespace: containers on one kernel share the boot id but not the process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"{socket.gethostname()} since {psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
