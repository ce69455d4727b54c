"""Search the recipe and side network of one task on train and val. It never opens test, which need not exist.

python jobs/search_task.py dtd --trials 20 --set epochs=40 --search-epochs 15
ray job submit --working-dir . -- python jobs/search_task.py vtab-dtd --search-algorithm optuna
Prints the table of trials, and the chosen settings as options for jobs/fanout_vtab.py.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.cluster.ray_environment import prepare_ray_environment
from pipeline.console.command_line import leave_with
from pipeline.console.secrets import shown_command
from pipeline.fanout.arguments import (
    add_search_arguments,
    add_task_arguments,
    fanout_options,
    run_or_status,
    search_options,
)


def main(argv: list[str] | None = None) -> int:
    """0: a trial is chosen; 1: the search failed, or MLflow is away; 2: the command line has faults; 130: stopped."""
    args = _parser().parse_args(argv)
    prepare_ray_environment()
    options = fanout_options(args, tasks=(args.task,), search=search_options(args, args.trials), search_only=True)
    outcome = run_or_status(options, shown_command(["python", sys.argv[0], *(sys.argv[1:] if argv is None else argv)]))
    if isinstance(outcome, int):
        return outcome
    return 1 if outcome.pending or any(row.status == "failed" for row in outcome.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="name (vtab-dtd), short name (dtd), or a task of a --task-file")
    parser.add_argument(
        "--trials",
        type=int,
        default=20,
        metavar="N",
        help="number of trials; the first has the default settings (default: 20)",
    )
    add_task_arguments(parser)
    add_search_arguments(parser)
    return parser


if __name__ == "__main__":
    leave_with(main)
