"""Fine-tune one HST side network per task on one frozen ViT and register a small checkpoint for each.

python jobs/fanout_vtab.py                                      all of VTAB-1k, on a local Ray
ray job submit --working-dir . -- python jobs/fanout_vtab.py    the same on a cluster
python jobs/fanout_vtab.py --tasks cifar,dtd --data DIR --set epochs=40 --set image_size=112
python jobs/fanout_vtab.py --task-file acme.toml                tasks of your own
python jobs/fanout_vtab.py --pack                               many tasks in one batch
python jobs/fanout_vtab.py --search 20 --seeds 3                search first, then train with three seeds
"""

from __future__ import annotations

import argparse
import sys

from pipeline.cluster.ray_environment import prepare_ray_environment
from pipeline.console.command_line import FaultyOptions, leave_with, print_faults
from pipeline.console.secrets import shown, shown_command
from pipeline.fanout.arguments import (
    add_search_arguments,
    add_task_arguments,
    fanout_options,
    idle_search_arguments,
    run_or_status,
    search_options,
    tasks_of_a_pack,
)


def main(argv: list[str] | None = None) -> int:
    """0: every task is registered; 1: one failed, or MLflow is away; 2: the command line has faults; 130: stopped."""
    args = _parser().parse_args(argv)
    if args.status:
        return _print_status(args.storage)
    prepare_ray_environment()
    if args.search is None and (idle := idle_search_arguments(args)):
        print_faults(FaultyOptions([f"{', '.join(idle)}: only for a search; add --search N, the number of trials"]))
        return 2
    options = fanout_options(
        args,
        tasks=tuple(name.strip() for text in args.tasks for name in text.split(",")),
        max_concurrent=args.max_concurrent,
        pack=args.pack,
        select=not args.no_selection,
        registry_prefix=args.registry_prefix,
        seeds=args.seeds,
        search=None if args.search is None else search_options(args, args.search, args.common_registers),
    )
    again = shown_command(["python", sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
    outcome = run_or_status(options, again)
    if isinstance(outcome, int):
        return outcome
    rows = outcome.rows
    failed = [row.task for row in rows if row.status == "failed"]
    if failed:
        print(f"{len(failed)} of {len(rows)} tasks failed: {', '.join(failed)}", file=sys.stderr)
    uri = args.tracking_uri
    page = shown(uri) if uri.startswith("http") else shown_command(["mlflow", "ui", "--backend-store-uri", uri])
    print(f"compare the runs: {page}")
    if done := [row for row in rows if row.status == "done"]:
        prefix = ["--registry-prefix", args.registry_prefix] if args.registry_prefix else []
        row = next((row for row in done if row.champion), done[0])
        version = [] if row.champion else ["--version", str(row.version)]
        pull = ["hst-registry", "--tracking-uri", uri, *prefix, "pull", row.task, *version]
        print(f"fetch a checkpoint: {shown_command(pull)}")
    return 1 if failed or outcome.pending else 0


def _print_status(storage: str) -> int:
    from pipeline.storage.files import StorageError
    from pipeline.workflow.state import read_states, states_table

    try:
        reports = read_states(storage)
    except (StorageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(states_table(reports) if reports else f"no fan-out in {storage}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--tasks",
        action="append",
        default=[],
        metavar="NAME[,NAME...]",
        help="names (vtab-dtd), short names (dtd), groups (natural, specialized, structured, fgvc, full, demo, own) or "
        "all (VTAB-1k); default: the tasks of the task files, else all",
    )
    add_task_arguments(parser)
    add("--max-concurrent", type=int, help="most tasks at once (default: as many as the cluster holds)")
    add(
        "--pack",
        type=tasks_of_a_pack,
        nargs="?",
        const=0,
        default=1,
        metavar="N",
        help="train up to N tasks in one batch on one worker; without N, share the tasks among the GPUs (or nodes, if "
        "there are no GPUs), as far as memory allows (default: train each task by itself)",
    )
    add(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="trainings per task, with seeds from --seed on; the first is registered",
    )
    add(
        "--no-selection",
        action="store_true",
        help="make only the final runs, no selection runs on train and val; versions are then never promoted "
        "automatically",
    )
    add(
        "--status",
        action="store_true",
        help="start nothing; show the progress of the fan-outs in --storage, including those that died",
    )
    add("--registry-prefix", default="", help="prefix of the names of registered models, to keep users apart")
    add(
        "--search",
        type=int,
        metavar="N",
        help="before training each task, try N recipes and side networks on train and val; the first is the default",
    )
    add(
        "--common-registers",
        action="store_true",
        help="search a single number of registers for all tasks, so that they can be packed and served together",
    )
    add_search_arguments(parser)
    return parser


if __name__ == "__main__":
    leave_with(main)
