"""The fan-out: many tasks on one frozen backbone, as many at once as the cluster holds; a failure leaves the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pipeline.backbone_store import store_backbone
from pipeline.code_version import code_version
from pipeline.data.errors import DataError
from pipeline.fanout_options import FanoutOptions, check, local_weights
from pipeline.locations import default_storage
from pipeline.ray_cluster import connect, living_nodes
from pipeline.reports.table import averages
from pipeline.resources import Plan, plan_resources
from pipeline.storage import absolute, is_remote, join
from pipeline.tracking import Tracker
from pipeline.training.driver import put_backbone
from pipeline.training.loop import TrainingError
from pipeline.workflow import Site, TaskJob, run_task

EXPERIMENT = "hst"


def run_fanout(options: FanoutOptions) -> list[dict[str, Any]]:
    """Train, evaluate and register every task; returns the rows of the final table, failed tasks among them.

    Raises:
        FaultyOptions: before anything is started.
    """
    options = dataclasses.replace(options, storage=absolute(options.storage), data=absolute(options.data))
    jobs, backbone = check(options)
    say = Printer()
    with contextlib.ExitStack() as stack:
        stack.enter_context(connect())
        plan = plan_resources(
            living_nodes(), num_tasks=len(jobs), num_workers=options.num_workers, max_concurrent=options.max_concurrent
        )
        say(f"{len(jobs)} tasks on {backbone.name} ({backbone.identity[:12]}): {plan}")
        say(f"storage {options.storage}, tracking {options.tracking_uri}")
        key = _key(options, jobs, backbone.identity)
        tracker = stack.enter_context(_open_tracker(options, key))
        tracker.open_run(
            key,
            name=f"fan-out {key[:8]}: {len(jobs)} tasks on {backbone.name}",
            params={
                "backbone": backbone.name,
                "seed": options.seed,
                "settings": " ".join(options.settings),
                "num_tasks": len(jobs),
                "num_workers": plan.num_workers,
            },
            tags={
                "backbone_identity": backbone.identity,
                "code_version": code_version(),
                "tasks": ",".join(job.task.name for job in jobs),
            },
        )
        store_backbone(options.tracking_uri, backbone.name, backbone.identity, local_weights(options))
        site = Site(
            storage=options.storage,
            tracking_uri=options.tracking_uri,
            registry_prefix=options.registry_prefix,
            backbone_name=backbone.name,
            backbone_identity=backbone.identity,
            backbone=put_backbone(backbone),
            plan=plan,
            tracker=tracker,
            parent_key=key,
            say=say,
        )
        rows = _run_all(jobs, site, plan)
        failed = [row for row in rows if row["status"] != "done"]
        tracker.log_metrics(
            key, 0, {"tasks_done": len(rows) - len(failed), "tasks_failed": len(failed), **averages(rows)}
        )
        tracker.close_run(key, "FAILED" if failed else "FINISHED")
    return rows


class Printer:
    """One line at a time, with the time of day, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def _run_all(jobs: list[TaskJob], site: Site, plan: Plan) -> list[dict[str, Any]]:
    """Rows in the order of ``jobs``. A failure is its row's; its traceback is shown where it is no plain mistake."""
    rows: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(plan.concurrent, thread_name_prefix="task") as pool:
        futures = {pool.submit(run_task, job, site): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            error = future.exception()
            if error is None:
                rows[job.task.name] = future.result()
                continue
            if not isinstance(error, (TrainingError, DataError)):
                traceback.print_exception(error, file=sys.stderr)
            site.say(f"{job.task.name}: FAILED: {error}")
            rows[job.task.name] = failed_row(job, str(error) or type(error).__name__)
    return [rows[job.task.name] for job in jobs]


def failed_row(job: TaskJob, error: str) -> dict[str, Any]:
    """The row of a task that did not get through."""
    unknown = dict.fromkeys(("val", "test", "published", "parameters", "images_per_second", "seconds", "version"), None)
    return {
        **unknown,
        "task": job.task.name,
        "group": job.task.group,
        "status": "failed",
        "subset_reasons": [],
        "champion": False,
        "error": error,
    }


def _key(options: FanoutOptions, jobs: list[TaskJob], identity: str) -> str:
    """The same command on the same data and backbone is the same fan-out, and goes on in the same MLflow runs."""
    content = {
        "jobs": [
            [job.task.name, dataclasses.asdict(job.recipe), job.hsn.to_dict(), job.seed, job.data, job.select]
            for job in jobs
        ],
        "backbone": identity,
        "storage": options.storage,
        "registry_prefix": options.registry_prefix,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _open_tracker(options: FanoutOptions, key: str) -> Tracker:
    """The ledger is appended to, which S3 cannot: with storage there, it lies under the user's data folder."""
    root = default_storage() if is_remote(options.storage) else options.storage
    artifact_root = None if is_remote(options.storage) else join(options.storage, "mlflow-artifacts")
    return Tracker(options.tracking_uri, EXPERIMENT, join(root, "ledgers", key), artifact_root=artifact_root)
