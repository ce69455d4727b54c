"""One task from shards to a registered checkpoint: shards -> search -> selection and final run -> register.

Every step is durable (`pipeline.workflow.steps`): when the job runs again, finished steps are skipped and an
interrupted one resumes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from safetensors.torch import save as save_tensors

from pipeline.cluster.resources import counted_workers
from pipeline.console.progress import Progress
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.data.sources import SPLIT_SEED, open_source
from pipeline.reports.table import seed_statistics
from pipeline.search.report import chosen_line
from pipeline.search.sampler import Outcome
from pipeline.storage.files import StorageError, join, write_bytes
from pipeline.tracking.code_version import code_version
from pipeline.tracking.mlflow_client import MlflowAwayError
from pipeline.training import checkpoints
from pipeline.training.stopped import Stopped
from pipeline.workflow.job import Site, TaskJob, Training
from pipeline.workflow.lease import Lease
from pipeline.workflow.published import published
from pipeline.workflow.registering import register_trained
from pipeline.workflow.search import TaskSearch
from pipeline.workflow.tracking import close_failed, log_data_report, log_pictures, log_row, params, tags


def run_task(job: TaskJob, site: Site, registers: int | None = None) -> dict[str, Any]:
    """Everything for one task; returns its row of the final table. Raises what stopped it.

    Args:
        job: the task.
        site: of the fan-out.
        registers: the number of registers that the searches of all tasks have chosen, if they chose one.
    """
    return _told(job, site, lambda: _run_task(job, site, registers))


def search_task(job: TaskJob, site: Site, *, alone: bool) -> list[Outcome]:
    """The outcomes of the trials of a task that has a search; nothing of test is needed, or looked at.

    Args:
        job: the task.
        site: of the fan-out.
        alone: this is all that is asked for; else `run_task` follows, which does not search again.
    """
    return _told(job, site, lambda: _search_task(job, site, alone))


def _told(job: TaskJob, site: Site, work: Callable[[], Any]) -> Any:
    """What ``work`` returns; its end by an error is in the fan-out's state."""
    try:
        return work()
    except BaseException as error:
        stage = "stopped" if isinstance(error, Stopped) else "failed"
        site.state.set(job.task.name, stage, error=str(error) or type(error).__name__)
        raise


def _search_task(job: TaskJob, site: Site, alone: bool) -> list[Outcome]:
    task, key = job.task.name, f"{site.parent_key}/{job.task.name}"
    site.state.set(task, "shards")
    try:
        with site.steps(task).alone("shards"):
            manifests = prepare_task(
                job.task, job.data, join(site.storage, "shards"), seed=SPLIT_SEED, without_test=True
            )
        reasons = open_source(job.data, job.task, seed=SPLIT_SEED, without_test=True).subset_reasons
        search = TaskSearch(job, site, manifests)
    except BaseException as error:
        site.tracker.open_run(key, name=task, parent_key=site.parent_key, params={"task": task}, tags={})
        close_failed(site, key, error)
        raise
    key = f"{key}/{search.fingerprint[:16]}"
    run_tags = tags(job, site, manifests, reasons)
    site.tracker.open_run(key, name=task, parent_key=site.parent_key, params={"task": task}, tags=run_tags)
    try:
        outcomes = search.run(key)
        if not alone:
            site.tracker.close_run(key, "KILLED")  # until it is trained
            site.state.set(task, "waiting")
            return outcomes
        number, _ = search.choose(outcomes)
    except BaseException as error:
        close_failed(site, key, error)
        raise
    site.tracker.close_run(key, "FINISHED")
    site.state.set(task, "searched", val=outcomes[number].value, trials=len(outcomes))
    return outcomes


def _run_task(job: TaskJob, site: Site, registers: int | None) -> dict[str, Any]:
    started = time.monotonic()
    task = job.task.name
    key = f"{site.parent_key}/{task}"
    site.state.set(task, "shards")
    search = None
    try:
        with site.steps(task).alone("shards"):
            manifests = prepare_task(job.task, job.data, join(site.storage, "shards"), seed=SPLIT_SEED)
        reasons = open_source(job.data, job.task, seed=SPLIT_SEED).subset_reasons
        # Other data or code is another run, never new tags on old metrics.
        if job.search is not None:
            search = TaskSearch(job, site, manifests)
            key = f"{key}/{search.fingerprint[:16]}"
        else:
            key = f"{key}/{Training.of(job, site, manifests).fingerprint[:16]}"
        run_tags = tags(job, site, manifests, reasons)
    except BaseException as error:
        site.tracker.open_run(key, name=task, parent_key=site.parent_key, params={"task": task}, tags={})
        close_failed(site, key, error)
        raise
    site.tracker.open_run(key, name=task, parent_key=site.parent_key, params={"task": task}, tags=run_tags)
    try:
        log_data_report(site, key, task, manifests)
        if search is not None:
            outcomes = search.run(key)
            number, job = search.choose(outcomes, registers)
            site.say(f"{task}: {chosen_line(outcomes, number, job.task.measure)}")
        training = Training.of(job, site, manifests)
        site.tracker.log_params(key, params(training.recipe, job, site))
        records = _train(training, job, site, key, manifests)
        metrics = _metrics(records)
        scores = [metrics, *_other_seeds(job, site, key, manifests)]
        site.state.set(task, "registering")
        version, away = None, None
        try:
            version = register_trained(training, job, site, key, manifests, records, metrics)
        except MlflowAwayError as error:  # the checkpoint is in storage: the same command registers it
            away = error.silence
        final = records["final"]["results"]
        row = {
            "task": task,
            "group": job.task.group,
            "status": "pending" if version is None else "done",
            **seed_statistics(scores, job.task.measure.name),
            "published": published(job, site),
            "subset_reasons": reasons,
            "parameters": final["parameters"],
            "images_per_second": final["images_per_second"],
            "seconds": sum(r["results"]["device_seconds"] for r in records.values()),
            "version": None if version is None else version.version,
            "champion": version is not None and version.is_champion,
            "run_id": None if version is None else version.run_id,
            "error": away,
        }
        site.tracker.set_tags(
            key,
            {
                **({} if version is None else {"registered_version": version.version, "champion": version.reason}),
                "device": final["device"],
                "code_version": records["final"]["code_version"],
            },
        )
        site.tracker.log_metrics(
            key,
            job.recipe.epochs,
            {
                **metrics,
                **_over_seeds(row),
                "images_per_second": final["images_per_second"],
                "device_seconds": row["seconds"],
                "peak_memory_bytes": final["peak_memory_bytes"],
                "parameters": final["parameters"],
            },
        )
    except BaseException as error:
        close_failed(site, key, error)
        raise
    site.tracker.close_run(key, "KILLED" if version is None else "FINISHED")
    site.state.set(task, row["status"], val=row["val"], test=row["test"], version=row["version"])
    val = "" if row["val"] is None else f"val {row['val']:.1%}, "
    if version is None:
        standing = f"not registered: {away}"
    else:
        reason = "champion" if version.is_champion else f"not champion: {version.reason}"
        standing = f"version {version.version} ({reason})"
    seconds = time.monotonic() - started
    site.say(f"{task}: {val}test {row['test']:.1%}, {standing}, {seconds:.0f} s")
    return row


def _other_seeds(job: TaskJob, site: Site, key: str, manifests: dict[str, Manifest]) -> list[dict[str, float]]:
    """Metrics of the trainings with the seeds that follow the job's, each in an MLflow run of its own."""
    found = []
    for seed in range(job.seed + 1, job.seed + job.num_seeds):
        other = dataclasses.replace(job, seed=seed)
        training = Training.of(other, site, manifests)
        seed_key = f"{key}/seed-{seed}"
        name = f"{job.task.name} seed {seed}"
        site.tracker.open_run(seed_key, name=name, parent_key=key, params=params(training.recipe, other, site))
        try:
            records = _train(training, other, site, seed_key, manifests)
        except BaseException as error:
            close_failed(site, seed_key, error)
            raise
        found.append(_metrics(records))
        site.tracker.log_metrics(seed_key, job.recipe.epochs, found[-1])
        site.tracker.close_run(seed_key, "FINISHED")
    return found


def _over_seeds(row: dict[str, Any]) -> dict[str, float]:
    """Mean and standard deviation of val and test, where there is more than one seed."""
    splits = [split for split in ("val", "test") if row[f"{split}_std"] is not None]
    return {f"{s}_mean": row[s] for s in splits} | {f"{s}_std": row[f"{s}_std"] for s in splits}


def _metrics(records: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Of a selection run and a final run together."""
    return {k: v for record in records.values() for k, v in record["results"]["metrics"].items()}


def _train(
    training: Training, job: TaskJob, site: Site, key: str, manifests: dict[str, Manifest]
) -> dict[str, dict[str, Any]]:
    """By run, its history, its results and the name of its tensors' file."""
    task, kinds = job.task.name, training.kinds
    steps = site.steps(task)
    unit = join(site.storage, "train", f"{task}-{training.fingerprint[:16]}")
    site.state.set(task, "training", unit=unit, epochs=job.recipe.epochs)
    name = task if job.num_seeds == 1 else f"{task} seed {job.seed}"
    progress = Progress(name, kinds, job.recipe.epochs, site.say)

    def on_rows(run: int, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            log_row(site.tracker, key, kinds[run], row)
        progress(run, rows)

    def work(fingerprint: str, lease: Lease) -> dict[str, Any]:
        where = "joining a pack" if site.plan.pack > 1 else f"starting {counted_workers(site.plan.asked_workers)}"
        site.say(f"{name}: {where}")
        runs = site.train(
            training.specs,
            folder=unit,
            attempt=lease.attempt,
            on_rows=on_rows,
            say=site.say,
            stopped=lambda: site.stop.is_set() or lease.lost.is_set(),
        )
        record = {}
        for kind, run in zip(kinds, runs, strict=True):
            tensors = steps.name("train", fingerprint, f"-{lease.attempt}-{kind}.safetensors")
            write_bytes(steps.file(tensors), save_tensors(run.tensors))
            record[kind] = {
                "history": run.history,
                "results": run.results,
                "tensors": tensors,
                "code_version": code_version(),
            }
        return record

    record, reused = steps.run("train", training.inputs, work)
    try:
        checkpoints.discard(unit)
    except (StorageError, OSError) as error:
        site.say(f"{task}: its training checkpoints could not be removed ({error})")
    if reused:
        site.say(f"{name}: trained before, not again")
        for kind in kinds:
            for row in record[kind]["history"]:
                log_row(site.tracker, key, kind, row)
    for kind in kinds:
        log_pictures(site, key, task, kind, record[kind], manifests)
    return record
