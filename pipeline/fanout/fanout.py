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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from functools import partial

from pipeline.cluster.ray_cluster import connect
from pipeline.cluster.resources import Plan
from pipeline.console.progress import Printer, counted
from pipeline.console.secrets import error_text, shown
from pipeline.data.errors import DataError
from pipeline.fanout.announce import say_pixels, say_places
from pipeline.fanout.options import FanoutOptions, check, is_data_unused
from pipeline.fanout.plan import plan_fanout
from pipeline.fanout.tracking import check_mlflow, comparison_page, deliver_rest, fanout_run
from pipeline.registry.backbones import store_backbone
from pipeline.reports.rows import TaskRow
from pipeline.reports.table import averages, fanout_table, search_tables
from pipeline.search.trials import common_registers, winner
from pipeline.storage.files import StorageError, join
from pipeline.tracking.code_version import source_sha256
from pipeline.training.checkpoints import RunResult
from pipeline.training.on_ray.driver import GRACE_S, put_backbone, train_unit
from pipeline.training.on_ray.packs import Packs
from pipeline.training.task_run import TrainingError
from pipeline.workflow.job import TaskJob
from pipeline.workflow.lease import Lease
from pipeline.workflow.site import Cluster, FrozenBackbone, Places, Reporting, Site
from pipeline.workflow.state import FanoutState, done_tasks
from pipeline.workflow.task import run_task, search_task


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a fan-out ended."""

    rows: list[TaskRow]
    """The rows of the final table: one for every task, including failed ones."""
    pending: str | None
    """A sentence about what MLflow lacks because it did not answer; the same command delivers it. None if nothing."""


def run_fanout(options: FanoutOptions) -> Outcome:
    """Train, evaluate and register every task, and print the final table.

    Raises:
        FaultyOptions: before anything is trained.
        MlflowAwayError: before anything is trained, MLflow did not answer.
        TrackingError: MLflow refused something; the table is printed by then.
    """
    options, jobs, loaded = check(options)
    check_mlflow(options)
    say = Printer()
    if is_data_unused(options, jobs):
        say(f"--data {options.data} is not used: every task has a place of its own, `data` in its file")
    with connect():
        backbone = FrozenBackbone(
            name=loaded.name,
            identity=loaded.identity,
            depth=loaded.depth,
            is_random=options.backbone_weights == "random",
            weights=put_backbone(loaded),
        )
        key = _key(options, jobs, backbone.identity)
        done = done_tasks(options.storage, key, [job.task.name for job in jobs])
        plan, room, jobs = plan_fanout(options, jobs, loaded, backbone.weights, done=done, say=say)
        say_places(options, say)
        say_pixels(options, jobs, loaded.name, say)
        with (
            fanout_run(options, jobs, key, backbone) as tracker,
            _training(options, jobs, key, backbone, plan, say) as train,
        ):
            weights, patience = options.backbone_weights, tracker.patience
            store_backbone(options.tracking_uri, backbone.name, backbone.identity, weights, patience=patience)
            state = FanoutState(options.storage, key, say)
            cluster = Cluster(plan=plan, room=room, train=train, cache_shards=options.cache_shards)
            reporting = Reporting(tracker=tracker, state=state, key=key, say=say)
            site = Site(
                backbone=backbone,
                places=_places(options),
                cluster=cluster,
                reporting=reporting,
                stop=threading.Event(),
            )
            what = f"{counted(len(jobs), 'task')} on {backbone.name}, seed {options.seed}"
            state.begin(what, [job.task.name for job in jobs])
            return _report(_rows(jobs, site, options), site, search_only=options.search_only)


def _places(options: FanoutOptions) -> Places:
    return Places(
        storage=options.storage,
        tracking_uri=options.tracking_uri,
        registry_prefix=options.registry_prefix,
    )


def _report(rows: list[TaskRow], site: Site, *, search_only: bool) -> Outcome:
    """Prints the table, closes the fan-out's run, and delivers what MLflow still lacks."""
    tracker, key, uri = site.reporting.tracker, site.reporting.key, site.places.tracking_uri
    table = search_tables(rows) if search_only else fanout_table(rows, packed=site.cluster.plan.pack > 1)
    print(table, flush=True)
    failed = [row.task for row in rows if row.status == "failed"]
    pending = [row.task for row in rows if row.status == "pending"]
    note = f"```\n{table}\n```"
    page = None if search_only else comparison_page(uri, tracker, rows)
    if page is not None:
        site.reporting.say(f"the tasks side by side: {shown(uri)}/{page}")
        note += f"\n\n[The tasks side by side]({page})"
    tracker.set_tags(key, {"mlflow.note.content": note, "tasks_failed": len(failed)})
    # One point for each attempt: MLflow shows the last one.
    means = {} if search_only else averages(rows)
    num_done = len(rows) - len(failed) - len(pending)
    tracker.log_metrics(key, int(time.time()), {"tasks_done": num_done, **means})
    tracker.close_run(key, "FAILED" if failed else "KILLED" if pending else "FINISHED")
    return Outcome(rows=rows, pending=deliver_rest(uri, tracker, pending))


@contextlib.contextmanager
def _training(
    options: FanoutOptions,
    jobs: list[TaskJob],
    key: str,
    backbone: FrozenBackbone,
    plan: Plan,
    say: Callable[[str], None],
) -> Iterator[Callable[..., list[RunResult]]]:
    """The function that trains a task's runs: on workers of its own, or in a pack with other tasks."""
    if plan.pack == 1:
        yield partial(train_unit, backbone=backbone.weights, plan=plan, cache_shards=options.cache_shards)
        return
    packs = Packs(
        backbone=backbone.weights,
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


def _rows(jobs: list[TaskJob], site: Site, options: FanoutOptions) -> list[TaskRow]:
    """A row for each task, in the order of ``jobs``.

    All tasks are searched before one is trained if they share one number of registers, or if packs would take the
    devices that trials need.
    """
    search = options.search
    if search is None or not (options.search_only or search.common_registers or site.cluster.plan.pack > 1):
        rows = _run_all(jobs, site, run_task)
    else:
        rows = _run_all(jobs, site, lambda job, site: _searched_row(job, site, alone=options.search_only))
        searched = [job for job in jobs if rows[job.task.name].status == "searched"]
        if searched and not options.search_only:
            rows |= _train_searched(searched, rows, site, common=search.common_registers)
    return [rows[job.task.name] for job in jobs]


def _searched_row(job: TaskJob, site: Site, *, alone: bool) -> TaskRow:
    """The row of a task whose search has ended."""
    outcomes = search_task(job, site, alone=alone)
    number = winner(outcomes, job.task.measure)
    assert number is not None  # else it has failed
    return TaskRow.of(job.task, "searched", val=outcomes[number].value, outcomes=tuple(outcomes))


def _train_searched(jobs: list[TaskJob], rows: dict[str, TaskRow], site: Site, *, common: bool) -> dict[str, TaskRow]:
    """Trains tasks that are searched; returns their rows.

    Args:
        jobs: the tasks.
        rows: the rows of their searches.
        site: the fan-out's site.
        common: whether the tasks share one number of registers.
    """
    try:
        registers = _choose_registers(jobs, rows, site) if common else None
    except TrainingError as error:
        reason = error_text(error)
        site.reporting.say(f"FAILED: {reason}")
        for job in jobs:
            site.reporting.state.set(job.task.name, "failed", error=reason)
        return {job.task.name: TaskRow.of(job.task, "failed", error=reason) for job in jobs}
    return _run_all(jobs, site, lambda job, site: run_task(job, site, registers))


def _choose_registers(jobs: list[TaskJob], rows: dict[str, TaskRow], site: Site) -> int:
    """One number of registers for all tasks, chosen by the outcomes of their searches."""
    searched = [rows[job.task.name] for job in jobs]

    def work(fingerprint: str, lease: Lease) -> dict[str, int]:
        registers = common_registers([(row.measure, row.outcomes) for row in searched])
        if registers is None:
            raise TrainingError("no number of registers has a whole trial in every task; search with more trials")
        return {"num_registers": registers}

    inputs = {
        "searched": {row.task: [dataclasses.asdict(one) for one in row.outcomes] for row in searched},
        "measures": {row.task: row.measure.to_dict() for row in searched},
    }
    chosen, _ = site.steps(f"fanout-{site.reporting.key}").run("registers", inputs, work)
    mean = "the best mean place, since their measures differ"
    if len({row.measure for row in searched}) == 1:
        mean = f"the {'highest' if searched[0].measure.higher_is_better else 'lowest'} mean of their best val"
    site.reporting.say(f"num_registers={chosen['num_registers']} for all tasks: {mean}")
    registers: int = chosen["num_registers"]
    return registers


def _run_all(jobs: list[TaskJob], site: Site, run: Callable[[TaskJob, Site], TaskRow]) -> dict[str, TaskRow]:
    """Rows by task, as many tasks at once as the plan says; a task that fails leaves the others."""
    rows: dict[str, TaskRow] = {}
    # Not `with`, which would wait for work that never looks whether it should stop.
    pool = ThreadPoolExecutor(site.cluster.plan.concurrent, thread_name_prefix="task")
    futures = {pool.submit(run, job, site): job for job in jobs}
    try:
        for future in as_completed(futures):
            job = futures[future]
            error = future.exception()
            rows[job.task.name] = future.result() if error is None else _failed_row(job, site, error)
    except BaseException:  # Ctrl-C, or the end of a submitted job
        site.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        site.reporting.say(f"stopping; what is in training is saved first, in {GRACE_S:.0f} s at most")
        under_way = [future for future in futures if not future.cancelled()]
        if wait(under_way, timeout=GRACE_S + 2).not_done:
            site.reporting.say("not everything ended in time; what was reported before is there")
        site.reporting.state.stop()
        raise
    pool.shutdown()
    return rows


def _failed_row(job: TaskJob, site: Site, error: BaseException) -> TaskRow:
    """The row of a task that failed. The failure is printed at once, with a traceback if it is a fault of the code."""
    if not isinstance(error, (TrainingError, DataError, StorageError)):
        traceback.print_exception(error, file=sys.stderr)
    reason = error_text(error).removeprefix(f"{job.task.name}: ")
    site.reporting.say(f"{job.task.name}: FAILED: {reason}")
    return TaskRow.of(job.task, "failed", error=reason)


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
        "experiment": options.experiment,
        "num_workers": options.num_workers,
        "sources": source_sha256(("hst", "pipeline")),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
