"""The fan-out that a drill runs, kills and runs again: one command line as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class Fanout:
    """One command that writes its output to a log.

    Args:
        script: path of ``jobs/fanout_vtab.py``.
        options: its command line.
        environment: all of its environment variables.
        log: file to which every start appends.
    """

    def __init__(self, script: Path, options: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._words = [sys.executable, str(script), *options]
        self._environment, self.log = dict(environment), log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the same command again."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._words, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def status(self) -> int | None:
        """The exit status of the last process; None while it runs."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> int:
        """Kills the process without warning; returns its number."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()
        return self._process.pid

    def end(self) -> None:
        """Kills the process if it still runs."""
        if self._process is not None and self.status is None:
            self.kill()
