"""The fan-out: many tasks on one frozen backbone, as many at once as the cluster holds; a failure leaves the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import Any
from urllib.parse import quote

from pipeline.backbone_store import store_backbone
from pipeline.code_version import code_version, source_sha256
from pipeline.command_line import FaultyOptions
from pipeline.data.errors import DataError
from pipeline.fanout_options import FanoutOptions, check, is_data_unused
from pipeline.fanout_state import FanoutState
from pipeline.locations import default_ledgers
from pipeline.mlflow_client import open_client
from pipeline.progress import Printer, counted
from pipeline.ray_cluster import connect, living_nodes
from pipeline.reports.table import averages, fanout_table
from pipeline.resources import plan_resources
from pipeline.storage import StorageError, excludes_others, is_remote, join
from pipeline.task_job import Site, TaskJob
from pipeline.tracking import Tracker, TrackingError
from pipeline.training.driver import GRACE_S, put_backbone
from pipeline.training.loop import TrainingError
from pipeline.workflow import run_task

EXPERIMENT = "hst"


def run_fanout(options: FanoutOptions) -> list[dict[str, Any]]:
    """Train, evaluate and register every task, and print the final table; returns its rows, failed tasks among them.

    Raises:
        FaultyOptions: before anything is trained.
        TrackingError: MLflow did not take everything; the table is printed by then, and the same command delivers the
            rest.
    """
    options, jobs, backbone = check(options)
    say = Printer()
    if is_data_unused(options, jobs):
        say(f"--data {options.data} is not used: every task has a place of its own, `data` in its file")
    with connect():
        try:
            plan = plan_resources(
                living_nodes(),
                num_tasks=len(jobs),
                num_workers=options.num_workers,
                max_concurrent=options.max_concurrent,
            )
        except ValueError as error:
            raise FaultyOptions([str(error)]) from error
        say(f"{counted(len(jobs), 'task')} on {backbone.name} ({backbone.identity[:12]}): {plan}")
        address = os.environ.get("RAY_ADDRESS")
        say(f"Ray: {f'joined {address}' if address else 'started here, for this job alone'}")
        say(f"storage {options.storage}, tracking {options.tracking_uri}")
        if not excludes_others(options.storage):
            say("single driver only: this store ignores If-None-Match, by which one of two drivers would be kept out")
        key = _key(options, jobs, backbone.identity)
        with _tracking(options, jobs, key, backbone.name, backbone.identity) as tracker:
            store_backbone(options.tracking_uri, backbone.name, backbone.identity, options.backbone_weights)
            site = Site(
                storage=options.storage,
                tracking_uri=options.tracking_uri,
                registry_prefix=options.registry_prefix,
                cache_shards=options.cache_shards,
                backbone_name=backbone.name,
                backbone_identity=backbone.identity,
                random_weights=options.backbone_weights == "random",
                backbone=put_backbone(backbone),
                plan=plan,
                tracker=tracker,
                state=FanoutState(options.storage, key, say),
                parent_key=key,
                say=say,
                stop=threading.Event(),
            )
            what = f"{counted(len(jobs), 'task')} on {backbone.name}, seed {options.seed}"
            site.state.begin(what, [job.task.name for job in jobs])
            rows = _run_all(jobs, site)
            table = fanout_table(rows)
            print(table, flush=True)
            failed = [row for row in rows if row["status"] != "done"]
            note = f"```\n{table}\n```"
            if (page := _comparison_page(options.tracking_uri, rows)) is not None:
                say(f"the tasks side by side: {options.tracking_uri}/{page}")
                note += f"\n\n[The tasks side by side]({page})"
            tracker.set_tags(key, {"mlflow.note.content": note, "tasks_failed": len(failed)})
            # One point an attempt: the last one is what MLflow shows.
            tracker.log_metrics(key, int(time.time()), {"tasks_done": len(rows) - len(failed), **averages(rows)})
            tracker.close_run(key, "FAILED" if failed else "FINISHED")
    return rows


@contextlib.contextmanager
def _tracking(
    options: FanoutOptions, jobs: list[TaskJob], key: str, backbone_name: str, backbone_identity: str
) -> Iterator[Tracker]:
    """The tracker with the fan-out's run open; the run is closed, too, where the fan-out is broken off."""
    # The ledger is appended to, which S3 cannot.
    ledgers = default_ledgers() if is_remote(options.storage) else join(options.storage, "ledgers")
    with Tracker(options.tracking_uri, EXPERIMENT, join(ledgers, key)) as tracker:
        tracker.open_run(
            key,
            name=f"fan-out {key[:8]}: {counted(len(jobs), 'task')} on {backbone_name}",
            params={
                "backbone": backbone_name,
                "seed": options.seed,
                "settings": " ".join(options.settings),
                "num_tasks": len(jobs),
                "num_workers": options.num_workers,
            },
            tags={
                "backbone_identity": backbone_identity,
                "code_version": code_version(),
                "tasks": ",".join(job.task.name for job in jobs),
            },
        )
        try:
            yield tracker
        except BaseException as error:
            tracker.close_run(key, "FAILED" if isinstance(error, Exception) else "KILLED")
            with contextlib.suppress(
                TrackingError
            ):  # the error under way is the one to be seen; the ledger keeps the rest
                tracker.flush(patience_seconds=2)
            raise


def _run_all(jobs: list[TaskJob], site: Site) -> list[dict[str, Any]]:
    """Rows in the order of ``jobs``. A failure is its row's; its traceback is shown where it is no plain mistake."""
    rows: dict[str, dict[str, Any]] = {}
    # Not `with`, which would wait for what never looks whether it is to stop.
    pool = ThreadPoolExecutor(site.plan.concurrent, thread_name_prefix="task")
    futures = {pool.submit(run_task, job, site): job for job in jobs}
    try:
        for future in as_completed(futures):
            job = futures[future]
            error = future.exception()
            if error is None:
                rows[job.task.name] = future.result()
                continue
            if not isinstance(error, (TrainingError, DataError, StorageError)):
                traceback.print_exception(error, file=sys.stderr)
            reason = str(error).removeprefix(f"{job.task.name}: ") or type(error).__name__
            site.say(f"{job.task.name}: FAILED: {reason}")
            rows[job.task.name] = failed_row(job, reason)
    except BaseException:  # Ctrl-C, or the end of a submitted job
        site.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        site.say(f"stopping; what is in training is saved first, in {GRACE_S:.0f} s at most")
        under_way = [future for future in futures if not future.cancelled()]
        for job in [job for future, job in futures.items() if future.cancelled()]:
            site.state.set(job.task.name, "stopped")
        if wait(under_way, timeout=GRACE_S + 2).not_done:
            site.say("not everything ended in time; what was reported before is there")
        raise
    pool.shutdown()
    return [rows[job.task.name] for job in jobs]


def _comparison_page(tracking_uri: str, rows: list[dict[str, Any]]) -> str | None:
    """MLflow's page that compares the tasks' runs, below a server's address; None without a server or with one run."""
    runs = [row["run_id"] for row in rows if row["status"] == "done"]
    if not tracking_uri.startswith("http") or len(runs) < 2:
        return None
    experiment = open_client(tracking_uri).get_run(runs[0]).info.experiment_id
    lists = {"runs": runs, "experiments": [experiment]}
    return "#/compare-runs?" + "&".join(f"{k}={quote(json.dumps(v, separators=(',', ':')))}" for k, v in lists.items())


def failed_row(job: TaskJob, error: str) -> dict[str, Any]:
    """The row of a task that did not get through."""
    unknown = ("val", "test", "published", "parameters", "images_per_second", "seconds", "version", "run_id")
    return {
        **dict.fromkeys(unknown),
        "task": job.task.name,
        "group": job.task.group,
        "status": "failed",
        "subset_reasons": [],
        "champion": False,
        "error": error,
    }


def _key(options: FanoutOptions, jobs: list[TaskJob], identity: str) -> str:
    """The same command with the same code is the same fan-out, and goes on in the same MLflow run."""
    content = {
        "jobs": [
            [job.task.name, dataclasses.asdict(job.recipe), job.hsn.to_dict(), job.seed, job.data, job.select]
            for job in jobs
        ],
        "backbone": identity,
        "storage": options.storage,
        "registry_prefix": options.registry_prefix,
        "num_workers": options.num_workers,
        "sources": source_sha256(("hst", "pipeline")),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
