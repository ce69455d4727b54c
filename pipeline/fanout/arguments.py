"""The arguments of the jobs that train or search tasks, and the options that they make."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from typing import TYPE_CHECKING

from hst.config import DEFAULT_BACKBONE, HSNConfig
from pipeline.cluster.ray_environment import remove_token
from pipeline.cluster.resources import NumWorkers, parse_num_workers
from pipeline.console.command_line import STOPPED, FaultyOptions, print_faults
from pipeline.console.secrets import shown
from pipeline.search.plan import SearchOptions
from pipeline.storage.locations import default_data, default_experiment, default_storage, default_tracking_uri
from pipeline.tasks.recipe import FIELD_GROUPS

if TYPE_CHECKING:
    from pipeline.fanout.fanout import Outcome
    from pipeline.fanout.options import FanoutOptions


def tasks_of_a_pack(text: str) -> int:
    """The `type` of ``--pack``'s number."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected how many tasks are trained in one batch, at least 1, or nothing"
        )
    return int(text)


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for data, backbone, places, settings and workers."""
    add = parser.add_argument
    add(
        "--task-file",
        action="append",
        default=[],
        metavar="FILE.toml",
        help="your own tasks, in tables [tasks.<name>]; may be given more than once",
    )
    add(
        "--data",
        help="folder with the tasks' data in any layout of docs/data.md, or shards; WebDataset tars and shards may be "
        f"on s3:// too; tasks with a place of their own do without (default: {_default(default_data())})",
    )
    add("--backbone", default=DEFAULT_BACKBONE, help="timm name of the frozen ViT (default: %(default)s)")
    add(
        "--backbone-weights",
        metavar="PATH",
        help="its weights: a file, s3://, or random (default: timm's own download; the package's, of hst_vit_*)",
    )
    storage, tracking_uri = default_storage(), default_tracking_uri()
    add("--storage", default=storage, help=f"folder or s3:// for shards and checkpoints (default: {_default(storage)})")
    add(
        "--tracking-uri",
        default=tracking_uri,
        help=f"MLflow server or sqlite:///; its login: docs/running.md (default: {_default(tracking_uri)})",
    )
    add(
        "--experiment",
        default=default_experiment(),
        metavar="NAME",
        help="MLflow experiment of the runs, which is created if missing (default: %(default)s)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"for all tasks, once a field; {_field_groups()}",
    )
    add(
        "--num-workers",
        type=_num_workers,
        default=1,
        metavar="N|N-M",
        help="train workers a task; of a range as many as the cluster holds, changed as nodes come and go (default: 1)",
    )
    add("--seed", type=int, default=0, help="of every random draw (default: 0)")
    add(
        "--cache-shards",
        action="store_true",
        help="copy shards on s3:// into each node's cache once, rather than stream them in every epoch",
    )


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how trials are made. Their number is an argument of the job itself."""
    add = parser.add_argument_group("search, on train and val alone").add_argument
    add(
        "--search-space",
        metavar="FILE.toml",
        help="what may change: field = [values], { low = , high = , log = }, a value that fixes it, or "
        '"recipe" to leave it; the rest is searched as by default: widths, depths, num_registers, learning_rate, '
        "weight_decay, drop_path; what --set names is fixed",
    )
    add(
        "--search-algorithm",
        metavar="NAME",
        help="random, optuna (TPE: where the trials before were good) or optuna-pareto (the same for two aims, high "
        "val and few parameters) (default: random)",
    )
    add("--search-epochs", type=int, metavar="N", help="number of epochs of a whole trial (default: the recipe's)")
    add(
        "--no-halving",
        action="store_true",
        help="let every trial do all its epochs; else those that are behind after a ninth and a third are stopped",
    )
    add(
        "--search-seconds",
        type=float,
        metavar="S",
        help="for each task: no other trial begins once its trials took this many device-seconds",
    )
    add(
        "--trials-at-once",
        type=int,
        metavar="N",
        help="of a task (default: one a worker's GPU, or one a CPU); more than GPUs share them",
    )


def idle_search_arguments(args: argparse.Namespace) -> list[str]:
    """The options of a search that were given although no search was asked for."""
    given = {
        "--search-space": args.search_space,
        "--search-algorithm": args.search_algorithm,
        "--search-epochs": args.search_epochs,
        "--no-halving": args.no_halving,
        "--search-seconds": args.search_seconds,
        "--trials-at-once": args.trials_at_once,
        "--common-registers": args.common_registers,
    }
    return [name for name, value in given.items() if value]


def search_options(args: argparse.Namespace, trials: int, common_registers: bool = False) -> SearchOptions:
    """The search that a command line asks for."""
    return SearchOptions(
        trials=trials,
        algorithm=args.search_algorithm or "random",
        epochs=args.search_epochs,
        halving=not args.no_halving,
        seconds=args.search_seconds,
        space=args.search_space,
        common_registers=common_registers,
        at_once=args.trials_at_once,
    )


def fanout_options(args: argparse.Namespace, **others: object) -> FanoutOptions:
    """The options of a command line with `add_task_arguments`; ``others`` are further fields of FanoutOptions."""
    from pipeline.fanout.options import FanoutOptions

    return FanoutOptions(
        task_files=tuple(args.task_file),
        data=args.data,
        backbone=args.backbone,
        backbone_weights=args.backbone_weights,
        storage=args.storage,
        tracking_uri=args.tracking_uri,
        experiment=args.experiment,
        settings=tuple(args.set),
        num_workers=args.num_workers,
        seed=args.seed,
        cache_shards=args.cache_shards,
        **others,  # type: ignore[arg-type]
    )


def run_or_status(options: FanoutOptions, again: str) -> Outcome | int:
    """Runs a fan-out; returns its outcome or, if it was cut short, the job's exit status.

    The reason of an exit status is printed.

    Args:
        options: the options of the command line.
        again: the command, for people who have to run it again.
    """
    from pipeline.cluster.answering import RayUnavailableError
    from pipeline.fanout.fanout import run_fanout
    from pipeline.storage.errors import StorageError
    from pipeline.tracking.ledger import LedgerError
    from pipeline.tracking.mlflow_client import MlflowAwayError, TrackingError

    try:
        outcome = run_fanout(options)
    except FaultyOptions as error:
        print_faults(error)
        return 2
    except MlflowAwayError as error:
        print(f"error: {error}; nothing was trained; when it is back: {again}", file=sys.stderr)
        return 1
    except (RayUnavailableError, TrackingError, LedgerError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):
        print(STOPPED, file=sys.stderr, flush=True)
        remove_token()
        os._exit(130)  # see pipeline.cluster.ray_cluster.connect
    if outcome.pending:
        print(f"{outcome.pending}; to deliver that when it is back, no training is repeated: {again}", file=sys.stderr)
    return outcome


def _num_workers(text: str) -> NumWorkers:
    try:
        return parse_num_workers(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _default(address: str) -> str:
    """A default address for argparse, which reads %."""
    return shown(address).replace("%", "%%")


def _field_groups() -> str:
    """The fields of a recipe in their groups, and those of the side network."""
    groups = {**FIELD_GROUPS, "side network": tuple(field.name for field in dataclasses.fields(HSNConfig))}
    return "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items())
