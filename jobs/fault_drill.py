"""Kill parts of a fan-out repeatedly and check that its results equal those of an undisturbed run to the last bit:

python jobs/fault_drill.py --minutes 10 --seed 0 --output FILE.json

Starts its own Ray cluster of several nodes and its own MLflow server on loopback. Searches and trains some small tasks
undisturbed, then again while it kills search trials, train workers, nodes, the driver and the MLflow server at random.
Prints what was killed and how long each recovery took. The exit status is 0 only if everything recovered and all
results are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cluster.ray_environment import prepare_ray_environment
from pipeline.console.command_line import leave_with, local_path


def main(arguments: Sequence[str] | None = None) -> int:
    """0: passed; 1: failed; 2: the command line has faults; 130: stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=local_path, required=True, help="JSON file for the results")
    add("--minutes", type=float, default=10, help="approximate time of the disturbed run on two cores (default: 10)")
    add("--seed", type=int, default=0, help="seed of the kills and of the trainings (default: 0)")
    add("--tasks", type=int, default=6, help="number of small tasks, 1 to 6 (default: 6)")
    add("--kills", type=int, help="number of kills (default: a little more than two per minute)")
    options = parser.parse_args(arguments)
    os.environ.pop("RAY_ADDRESS", None)  # the drill starts its own cluster
    prepare_ray_environment()
    try:
        from pipeline.console.progress import Printer
        from pipeline.drill.cluster import ClusterError
        from pipeline.drill.drill import DrillError, hold_drill, plan_drill
        from pipeline.drill.report import report_of, table
        from pipeline.drill.servers import ServerError

        try:
            plan = plan_drill(minutes=options.minutes, seed=options.seed, tasks=options.tasks, kills=options.kills)
            if not options.output.absolute().parent.is_dir():
                raise ValueError(f"--output {options.output}: there is no folder {options.output.absolute().parent}")
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        script = Path(__file__).resolve().with_name("fanout_vtab.py")
        try:
            report = hold_drill(plan, script=script, say=Printer(), report=report_of)
        except (ClusterError, DrillError, ServerError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(table(report))
        return 0 if report["passed"] else 1
    except (KeyboardInterrupt, SystemExit):
        print("stopped; the same command starts from the beginning", file=sys.stderr)
        return 130


if __name__ == "__main__":
    leave_with(main)
