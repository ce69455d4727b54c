"""What the jobs' command lines share: every fault at once, told before anything is started."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pipeline.console.progress import counted

STOPPED = "stopped; the same command goes on where this one was"


class FaultyOptions(ValueError):
    """Every fault of a command line at once; `faults` has one message each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def local_path(text: str) -> Path:
    """The `type` of an option that takes a local path alone: of an address, a Path would make a folder called s3:."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a local path")
    return Path(text)


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Run a job and leave with its status: 130 for Ctrl-C, wherever that found it, while it still imports too."""
    try:
        status = main()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)


def print_faults(error: FaultyOptions) -> None:
    """Tells people what is wrong, a fault a line, on standard error."""
    print(f"nothing was started; {counted(len(error.faults), 'fault')}:", file=sys.stderr)
    for fault in error.faults:
        print("  - " + fault.replace("\n", "\n    "), file=sys.stderr)
