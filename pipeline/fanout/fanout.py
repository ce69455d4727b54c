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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from hst.backbone import Backbone
from pipeline.cluster.ray_cluster import connect
from pipeline.cluster.resources import Plan
from pipeline.console.progress import Printer, counted
from pipeline.data.errors import DataError
from pipeline.fanout.options import FanoutOptions, check, is_data_unused
from pipeline.fanout.plan import plan_fanout
from pipeline.fanout.tracking import comparison_page, deliver_rest, fanout_run
from pipeline.registry.backbones import store_backbone
from pipeline.reports.table import averages, fanout_table
from pipeline.search.report import chosen_line, command_line, trials_table
from pipeline.search.trials import common_registers, winner
from pipeline.storage.files import StorageError, excludes_others, join
from pipeline.tracking.code_version import source_sha256
from pipeline.training.checkpoints import RunResult
from pipeline.training.on_ray.driver import GRACE_S, put_backbone, train_unit
from pipeline.training.on_ray.packs import Packs
from pipeline.training.task_run import TrainingError
from pipeline.workflow.job import Site, TaskJob
from pipeline.workflow.lease import Lease
from pipeline.workflow.state import FanoutState, done_tasks
from pipeline.workflow.task import run_task, search_task


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a fan-out."""

    rows: list[dict[str, Any]]
    """Of the final table: every task, failed ones among them."""
    pending: str | None
    """What MLflow has not got since it did not answer, for people; the same command delivers it. None: it has all."""


def run_fanout(options: FanoutOptions) -> Outcome:
    """Train, evaluate and register every task, and print the final table.

    Raises:
        FaultyOptions: before anything is trained.
        MlflowAwayError: before anything is trained, MLflow did not answer.
        TrackingError: MLflow refused something; the table is printed by then.
    """
    options, jobs, backbone = check(options)
    say = Printer()
    if is_data_unused(options, jobs):
        say(f"--data {options.data} is not used: every task has a place of its own, `data` in its file")
    with connect():
        key, shared = _key(options, jobs, backbone.identity), put_backbone(backbone)
        done = done_tasks(options.storage, key, [job.task.name for job in jobs])
        plan, room, jobs = plan_fanout(options, jobs, backbone, shared, done=done, say=say)
        address = os.environ.get("RAY_ADDRESS")
        say(f"Ray: {f'joined {address}' if address else 'started here, for this job alone'}")
        say(f"storage {options.storage}, tracking {options.tracking_uri}")
        if not excludes_others(options.storage):
            say("single driver only: this store ignores If-None-Match, by which one of two drivers would be kept out")
        with (
            fanout_run(options, jobs, key, backbone.name, backbone.identity) as tracker,
            _training(options, jobs, key, backbone, shared, plan, say) as train,
        ):
            store_backbone(
                options.tracking_uri,
                backbone.name,
                backbone.identity,
                options.backbone_weights,
                patience=tracker.patience,
            )
            site = Site(
                storage=options.storage,
                tracking_uri=options.tracking_uri,
                registry_prefix=options.registry_prefix,
                cache_shards=options.cache_shards,
                backbone_name=backbone.name,
                backbone_identity=backbone.identity,
                backbone_depth=backbone.depth,
                random_weights=options.backbone_weights == "random",
                backbone=shared,
                plan=plan,
                train=train,
                room=room,
                tracker=tracker,
                state=FanoutState(options.storage, key, say),
                parent_key=key,
                say=say,
                stop=threading.Event(),
            )
            what = f"{counted(len(jobs), 'task')} on {backbone.name}, seed {options.seed}"
            site.state.begin(what, [job.task.name for job in jobs])
            rows = _rows(jobs, site, options)
            table = _search_tables(rows) if options.search_only else fanout_table(rows, packed=plan.pack > 1)
            print(table, flush=True)
            failed = [row for row in rows if row["status"] == "failed"]
            pending = [row["task"] for row in rows if row["status"] == "pending"]
            note = f"```\n{table}\n```"
            page = None if options.search_only else comparison_page(options.tracking_uri, tracker, rows)
            if page is not None:
                say(f"the tasks side by side: {options.tracking_uri}/{page}")
                note += f"\n\n[The tasks side by side]({page})"
            tracker.set_tags(key, {"mlflow.note.content": note, "tasks_failed": len(failed)})
            # One point an attempt: the last one is what MLflow shows.
            means = {} if options.search_only else averages(rows)
            num_done = len(rows) - len(failed) - len(pending)
            tracker.log_metrics(key, int(time.time()), {"tasks_done": num_done, **means})
            tracker.close_run(key, "FAILED" if failed else "KILLED" if pending else "FINISHED")
            undelivered = deliver_rest(options.tracking_uri, tracker, pending)
    return Outcome(rows=rows, pending=undelivered)


@contextlib.contextmanager
def _training(
    options: FanoutOptions,
    jobs: list[TaskJob],
    key: str,
    backbone: Backbone,
    shared: Any,
    plan: Plan,
    say: Callable[[str], None],
) -> Iterator[Callable[..., list[RunResult]]]:
    """What trains a task's runs: workers of its own, or a pack with other tasks'."""
    if plan.pack == 1:
        yield partial(train_unit, backbone=shared, plan=plan, cache_shards=options.cache_shards)
        return
    packs = Packs(
        backbone=shared,
        backbone_name=backbone.name,
        backbone_identity=backbone.identity,
        float64=any(job.recipe.precision == "float64" for job in jobs),
        plan=plan,
        folder=join(options.storage, "train", f"packs-{key}"),
        say=say,
        cache_shards=options.cache_shards,
    )
    try:
        yield packs.train
    finally:
        packs.close()


def _rows(jobs: list[TaskJob], site: Site, options: FanoutOptions) -> list[dict[str, Any]]:
    """A row a task, in the order of ``jobs``. All are searched before one is trained where one number of registers is
    chosen for all, or where packs would take the devices that trials need."""
    search = options.search
    if search is None or not (options.search_only or search.common_registers or site.plan.pack > 1):
        rows = _run_all(jobs, site, run_task)
    else:
        rows = _run_all(jobs, site, lambda job, site: _searched_row(job, site, alone=options.search_only))
        searched = [job for job in jobs if rows[job.task.name]["status"] == "done"]
        if searched and not options.search_only:
            try:
                registers = _choose_registers(searched, rows, site) if search.common_registers else None
            except TrainingError as error:
                site.say(f"FAILED: {error}")
                for job in searched:
                    site.state.set(job.task.name, "failed", error=str(error))
                return [failed_row(job, str(error)) if job in searched else rows[job.task.name] for job in jobs]
            rows |= _run_all(searched, site, lambda job, site: run_task(job, site, registers))
    return [rows[job.task.name] for job in jobs]


def _searched_row(job: TaskJob, site: Site, *, alone: bool) -> dict[str, Any]:
    """Of a task whose search has ended."""
    outcomes = search_task(job, site, alone=alone)
    number = winner(outcomes, job.task.measure)
    assert number is not None  # else it has failed
    return {
        "task": job.task.name,
        "status": "done",
        "val": outcomes[number].value,
        "outcomes": outcomes,
        "measure": job.task.measure,
    }


def _choose_registers(jobs: list[TaskJob], rows: dict[str, dict[str, Any]], site: Site) -> int:
    """One number of registers for all tasks whose search has ended, by what their trials were."""
    outcomes = {job.task.name: rows[job.task.name]["outcomes"] for job in jobs}

    def work(fingerprint: str, lease: Lease) -> dict[str, Any]:
        registers = common_registers([(job.task.measure, outcomes[job.task.name]) for job in jobs])
        if registers is None:
            raise TrainingError("no number of registers has a whole trial in every task; search with more trials")
        return {"num_registers": registers}

    inputs = {"searched": {task: [dataclasses.asdict(one) for one in found] for task, found in outcomes.items()}}
    chosen, _ = site.steps(f"fanout-{site.parent_key}").run("registers", inputs, work)
    mean = "the best mean place, since their measures differ"
    if len({job.task.measure for job in jobs}) == 1:
        mean = f"the {'highest' if jobs[0].task.measure.higher_is_better else 'lowest'} mean of their best val"
    site.say(f"num_registers={chosen['num_registers']} for all tasks: {mean}")
    registers: int = chosen["num_registers"]
    return registers


def _search_tables(rows: list[dict[str, Any]]) -> str:
    parts = []
    for row in rows:
        if row["status"] != "done":
            parts.append(f"{row['task']}: {row['status']}: {row['error']}")
            continue
        outcomes, measure = row["outcomes"], row["measure"]
        number = winner(outcomes, measure)
        assert number is not None
        lines = [trials_table(outcomes, number, measure), chosen_line(outcomes, number, measure)]
        parts.append("\n".join([row["task"], *lines, command_line(row["task"], outcomes[number])]))
    return "\n\n".join(parts)


def _run_all(
    jobs: list[TaskJob], site: Site, run: Callable[[TaskJob, Site], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Rows by task. A failure is its row's; its traceback is shown where it is no plain mistake."""
    rows: dict[str, dict[str, Any]] = {}
    # Not `with`, which would wait for what never looks whether it is to stop.
    pool = ThreadPoolExecutor(site.plan.concurrent, thread_name_prefix="task")
    futures = {pool.submit(run, job, site): job for job in jobs}
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
        if wait(under_way, timeout=GRACE_S + 2).not_done:
            site.say("not everything ended in time; what was reported before is there")
        site.state.stop()
        raise
    pool.shutdown()
    return rows


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
        "search": options.search
        and [
            dataclasses.asdict(options.search),
            [job.search.inputs() for job in jobs if job.search is not None],
        ],
        "search_only": options.search_only,
        "seeds": options.seeds,
        "backbone": identity,
        "storage": options.storage,
        "registry_prefix": options.registry_prefix,
        "num_workers": options.num_workers,
        "sources": source_sha256(("hst", "pipeline")),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
