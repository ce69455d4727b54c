"""An append-only log of what to deliver and what has been delivered: one JSON object per line, flushed to disk.

It survives a kill at any byte: an incomplete last line was never acknowledged to a caller and is dropped. Only one
process at a time can open a ledger. It knows nothing about MLflow.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.storage.errors import DiskFullError, is_full


class LedgerError(ValueError):
    """The ledger is in use by another process, is damaged, or its folder is not an absolute local path."""


class Ledger:
    """``folder/ledger.jsonl``. `append` is thread-safe and returns when the line is on disk."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_absolute():  # refuses s3://, too: a ledger must be appended to and locked
            raise LedgerError(f"ledger folder {str(folder)!r}: expected an absolute path on a local disk")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "ledger.jsonl"
        self._lock = threading.Lock()
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            self._file.close()
            raise LedgerError(
                f"{self.path} is in use by another process; each job needs a ledger of its own"
            ) from fault
        self._drop_torn_line()

    def append(self, entry: dict[str, Any]) -> None:
        """Writes one entry; it is on disk when this returns. If the write fails, a partial line is removed."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(line) != len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(self._file.fileno())
            except OSError as error:
                self._file.truncate(end)
                if is_full(error):
                    raise DiskFullError.of(self.path, error) from error
                raise

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries in the order of writing. Raises LedgerError with the number of a damaged line."""
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = json.loads(line)
                except ValueError as fault:
                    raise LedgerError(f"{self.path}:{number}: damaged line: {fault}") from fault
                yield entry

    def close(self) -> None:
        self._file.close()

    def _drop_torn_line(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        position = size
        while position > 0:
            begin = max(0, position - 4096)
            newline = os.pread(self._file.fileno(), position - begin, begin).rfind(b"\n")
            if newline >= 0:
                position = begin + newline + 1
                break
            position = begin
        if position < size:
            self._file.truncate(position)
            os.fsync(self._file.fileno())
