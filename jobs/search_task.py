"""Search one task's recipe and side network on train and val; test is not opened, and need not be there.

python jobs/search_task.py dtd --trials 20 --set epochs=40 --search-epochs 15
ray job submit --working-dir . -- python jobs/search_task.py vtab-dtd --search-algorithm optuna
Ends with the table of trials, and with what was chosen as settings for jobs/fanout_vtab.py.
"""

from __future__ import annotations

import argparse
import os
import sys

from pipeline.command_line import STOPPED, FaultyOptions, leave_with, print_faults
from pipeline.fanout_arguments import add_search_arguments, add_task_arguments, fanout_options, search_options
from pipeline.ray_environment import prepare_ray_environment


def main(argv: list[str] | None = None) -> int:
    """0: a trial is chosen; 1: the search failed; 2: the command line has faults; 130: stopped."""
    args = _parser().parse_args(argv)
    prepare_ray_environment()
    from pipeline.fanout import run_fanout
    from pipeline.ledger import LedgerError
    from pipeline.mlflow_client import TrackingError

    options = fanout_options(args, tasks=(args.task,), search=search_options(args, args.trials), search_only=True)
    try:
        (row,) = run_fanout(options)
    except FaultyOptions as error:
        print_faults(error)
        return 2
    except (TrackingError, LedgerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(130)  # see pipeline.ray_cluster.connect
    return 0 if row["status"] == "done" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="its name (vtab-dtd), short name (dtd), or one of a --task-file")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="the first is the default (default: 20)")
    add_task_arguments(parser)
    add_search_arguments(parser)
    return parser


if __name__ == "__main__":
    leave_with(main)
