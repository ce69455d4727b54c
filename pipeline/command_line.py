"""What the jobs' command lines share: every fault at once, told before anything is started."""

import argparse
import sys
from pathlib import Path


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


def print_faults(error: FaultyOptions) -> None:
    """Tells people what is wrong, a fault a line, on standard error."""
    print(f"nothing was started; {len(error.faults)} fault(s):", file=sys.stderr)
    for fault in error.faults:
        print("  - " + fault.replace("\n", "\n    "), file=sys.stderr)
