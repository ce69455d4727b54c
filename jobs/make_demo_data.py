"""Make the data of the four demo tasks, without any download:

    python jobs/make_demo_data.py ~/demo-data
    python jobs/fanout_vtab.py --tasks demo --data ~/demo-data ...

Existing folders stay unchanged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.console.command_line import leave_with, local_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the data, prints its folders and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=local_path, help="local folder, in which one folder per task is made")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images (default: 0)")
    options = parser.parse_args(arguments)

    from pipeline.data.demo import make_demo_data  # after parsing, so that --help answers at once

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
