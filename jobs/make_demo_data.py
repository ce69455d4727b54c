"""Make the demo's four tasks, which need no download:

    python jobs/make_demo_data.py ~/demo-data
    python jobs/fanout_vtab.py --tasks demo --data ~/demo-data ...

What is already there is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.console.command_line import leave_with, local_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, make the data, print where it is, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=local_path, help="the local folder to make; one folder a task is made in it")
    parser.add_argument("--seed", type=int, default=0, help="what the images are drawn from (default: 0)")
    options = parser.parse_args(arguments)

    from pipeline.data.demo import make_demo_data  # after parsing: --help answers at once

    try:
        folders = make_demo_data(options.root, seed=options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for folder in folders:
        print(folder)
    return 0


if __name__ == "__main__":
    leave_with(main)
