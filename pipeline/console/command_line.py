"""Shared by the command lines of the jobs: all faults are reported at once, before anything is started."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from pipeline.console.progress import counted
from pipeline.console.secrets import shown

STOPPED = "stopped; run the same command again to continue"


class FaultyOptions(ValueError):
    """All faults of a command line; `faults` has one message for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def local_path(text: str) -> Path:
    """`type` of an option that takes only a local path; refuses s3://..., which a Path would turn into a folder s3:."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{shown(text)!r}: expected a local path")
    return Path(text)


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Runs a job and exits with its status; with 130 after Ctrl-C, even during its imports.

    Whatever this process prints from then on, a library's warning or a traceback too, goes through `shown`.
    """
    sys.stdout, sys.stderr = cast(TextIO, _Shown(sys.stdout)), cast(TextIO, _Shown(sys.stderr))
    try:
        status = main()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)


class _Shown:
    """A stream of text that writes to another one what `shown` lets through."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_faults(error: FaultyOptions) -> None:
    """Prints one fault per line on standard error."""
    print(f"nothing was started; {counted(len(error.faults), 'fault')}:", file=sys.stderr)
    for fault in error.faults:
        print("  - " + fault.replace("\n", "\n    "), file=sys.stderr)
