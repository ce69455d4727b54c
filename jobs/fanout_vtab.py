"""Fine-tune one HST side network per task on one frozen ViT, and register a light checkpoint for each.

python jobs/fanout_vtab.py                                      all of VTAB-1k, on a local Ray
ray job submit --working-dir . -- python jobs/fanout_vtab.py    the same on a cluster
python jobs/fanout_vtab.py --tasks cifar,dtd --data DIR --set epochs=40 --set image_size=112
python jobs/fanout_vtab.py --task-file acme.toml                tasks of your own
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from hst.config import DEFAULT_BACKBONE, HSNConfig
from pipeline.command_line import STOPPED, FaultyOptions, leave_with, print_faults
from pipeline.locations import default_data, default_storage, default_tracking_uri
from pipeline.ray_environment import prepare_ray_environment
from pipeline.tasks.recipe import Recipe


def main(argv: list[str] | None = None) -> int:
    """0: every task is registered; 1: a task failed; 2: the command line has faults; 130: stopped."""
    args = _parser().parse_args(argv)
    if args.status:
        return _print_status(args.storage)
    prepare_ray_environment()
    from pipeline.fanout import run_fanout
    from pipeline.fanout_options import FanoutOptions
    from pipeline.ledger import LedgerError
    from pipeline.mlflow_client import TrackingError
    from pipeline.storage_errors import StorageError

    options = FanoutOptions(
        tasks=tuple(name.strip() for text in args.tasks for name in text.split(",")),
        task_files=tuple(args.task_file),
        data=args.data,
        backbone=args.backbone,
        backbone_weights=args.backbone_weights,
        storage=args.storage,
        tracking_uri=args.tracking_uri,
        settings=tuple(args.set),
        num_workers=args.num_workers,
        max_concurrent=args.max_concurrent,
        seed=args.seed,
        select=not args.no_selection,
        cache_shards=args.cache_shards,
        registry_prefix=args.registry_prefix,
    )
    try:
        rows = run_fanout(options)
    except FaultyOptions as error:
        print_faults(error)
        return 2
    except (TrackingError, LedgerError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(130)  # see pipeline.ray_cluster.connect
    failed = [row["task"] for row in rows if row["status"] != "done"]
    if failed:
        print(f"{len(failed)} of {len(rows)} tasks failed: {', '.join(failed)}", file=sys.stderr)
    served = args.tracking_uri.startswith("http")
    print(f"compare the runs: {args.tracking_uri if served else f'mlflow ui --backend-store-uri {args.tracking_uri}'}")
    if done := [row for row in rows if row["status"] == "done"]:
        prefix = f" --registry-prefix {args.registry_prefix}" if args.registry_prefix else ""
        row = next((row for row in done if row["champion"]), done[0])
        version = "" if row["champion"] else f" --version {row['version']}"
        print(
            f"fetch a checkpoint: hst-registry --tracking-uri {args.tracking_uri}{prefix} pull {row['task']}{version}"
        )
    return 1 if failed else 0


def _print_status(storage: str) -> int:
    from pipeline.fanout_state import read_states, states_table
    from pipeline.storage import StorageError

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
        "all (VTAB-1k); default: the task files' tasks, else all",
    )
    add(
        "--task-file",
        action="append",
        default=[],
        metavar="FILE.toml",
        help="your own tasks, in tables [tasks.<name>]; may be given more than once",
    )
    add(
        "--data",
        help="folder with the tasks' data in any layout of the README, or shards; WebDataset tars and shards may be on "
        f"s3:// too; tasks with a place of their own do without (default: {default_data().replace('%', '%%')})",
    )
    add("--backbone", default=DEFAULT_BACKBONE, help="timm name of the frozen ViT (default: %(default)s)")
    add(
        "--backbone-weights",
        metavar="PATH",
        help="its weights: a file, s3://, or random (default: timm's own download; the package's, of hst_vit_*)",
    )
    add(
        "--storage", default=default_storage(), help="folder or s3:// for shards and checkpoints (default: %(default)s)"
    )
    add("--tracking-uri", default=default_tracking_uri(), help="MLflow server or sqlite:/// (default: %(default)s)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"for all tasks, once a field; of the recipe: {_names(Recipe)}; of the side network: {_names(HSNConfig)}",
    )
    add("--num-workers", type=int, default=1, help="train workers a task (default: 1)")
    add("--max-concurrent", type=int, help="most tasks at once (default: as many as the cluster holds)")
    add("--seed", type=int, default=0, help="of every random draw (default: 0)")
    add(
        "--no-selection",
        action="store_true",
        help="only the final runs; their versions are never promoted by themselves",
    )
    add(
        "--cache-shards",
        action="store_true",
        help="copy shards on s3:// into each node's cache once, rather than stream them in every epoch",
    )
    add(
        "--status",
        action="store_true",
        help="start nothing; show what the fan-outs of --storage are at, from what is there, also of those that died",
    )
    add("--registry-prefix", default="", help="in front of every registered model's name, to keep users apart")
    return parser


def _names(configuration: type[Recipe] | type[HSNConfig]) -> str:
    return ", ".join(field.name for field in dataclasses.fields(configuration))


if __name__ == "__main__":
    leave_with(main)
