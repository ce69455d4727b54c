"""One task from shards to a registered checkpoint: shards -> search -> selection and final run -> register.

Every step is durable (`pipeline.workflow.steps`): when the job runs again, finished steps are skipped and an
interrupted one resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

from pipeline.console.secrets import error_text
from pipeline.data.prepare import prepare_source
from pipeline.data.sources import SPLIT_SEED, open_source
from pipeline.registry.versions import RegisteredVersion
from pipeline.reports.rows import TaskRow, over_seeds
from pipeline.search.report import chosen_line
from pipeline.search.sampler import Outcome
from pipeline.storage.files import join
from pipeline.tasks.measure_text import results_text
from pipeline.tracking.mlflow_client import MlflowAwayError
from pipeline.training.stopped import Stopped
from pipeline.workflow.job import TaskJob, TaskWork, Training, steps_of
from pipeline.workflow.published import published
from pipeline.workflow.record import Records, metrics_of
from pipeline.workflow.registering import register_trained
from pipeline.workflow.search import TaskSearch
from pipeline.workflow.site import Site
from pipeline.workflow.tracking import close_failed, doubts_of, log_data_report, log_results, params, tags
from pipeline.workflow.train import train


def run_task(job: TaskJob, site: Site, registers: int | None = None) -> TaskRow:
    """Does everything for one task; returns its row of the final table. Raises the error that stopped it.

    Args:
        job: the task.
        site: the fan-out's site.
        registers: the number of registers that was chosen for all tasks; None if the task chooses its own.
    """
    started = time.monotonic()
    with _noting_its_end(job, site):
        work, search = _open(job, site)
        with _closing_on_error(work):
            log_data_report(work)
            if search is not None:
                work = _with_winner(work, search, registers)
            row, version = _train_and_register(work)
        _close(work, row, version, time.monotonic() - started)
    return row


def search_task(job: TaskJob, site: Site, *, alone: bool) -> list[Outcome]:
    """Searches one task; returns the outcomes of its trials. It needs no test split, and never reads one.

    Args:
        job: the task, with a search.
        site: the fan-out's site.
        alone: whether the task is only searched. If not, `run_task` follows, and does not search again.
    """
    with _noting_its_end(job, site):
        work, search = _open(job, site, without_test=True)
        assert search is not None
        with _closing_on_error(work):
            outcomes = search.run(work.key)
            number = search.choose(outcomes)[0] if alone else None
        work.tracker.close_run(work.key, "KILLED" if number is None else "FINISHED")  # KILLED until it is trained
        if number is None:
            work.set_stage("waiting")
        else:
            measure = job.task.measure.to_dict()
            work.set_stage("searched", val=outcomes[number].value, measure=measure, trials=len(outcomes))
    return outcomes


@contextlib.contextmanager
def _noting_its_end(job: TaskJob, site: Site) -> Iterator[None]:
    """Notes an error that ends the task in the fan-out's state."""
    try:
        yield
    except BaseException as error:
        stage = "stopped" if isinstance(error, Stopped) else "failed"
        site.reporting.state.set(job.task.name, stage, error=error_text(error))
        raise


@contextlib.contextmanager
def _closing_on_error(work: TaskWork) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        close_failed(work.tracker, work.key, error)
        raise


def _open(job: TaskJob, site: Site, *, without_test: bool = False) -> tuple[TaskWork, TaskSearch | None]:
    """Prepares the task's shards and opens its MLflow run; returns its search, too, if it has one."""
    task, tracker, parent = job.task.name, site.reporting.tracker, site.reporting.key
    site.reporting.state.set(task, "shards")
    key = f"{parent}/{task}"
    try:
        shards = join(site.places.storage, "shards")
        with steps_of(job, site).alone("shards"):
            source = open_source(job.data, job.task, seed=SPLIT_SEED, without_test=without_test)
            for note in source.notes:
                site.reporting.say(f"{task}: {note}")
            manifests = prepare_source(source, job.task, shards)
        search = None if job.search is None else TaskSearch(job, site, manifests)
        # Other data or code gets another MLflow run, so that new tags never stand beside old metrics.
        fingerprint = Training.of(job, site, manifests).fingerprint if search is None else search.fingerprint
        key = f"{key}/{fingerprint[:16]}"
        work = TaskWork(job=job, site=site, key=key, manifests=manifests, subset_reasons=tuple(source.subset_reasons))
        run_tags = tags(work)
    except BaseException as error:
        key = f"{parent}/{task}"
        tracker.open_run(key, name=task, parent_key=parent, params={"task": task}, tags={})
        close_failed(tracker, key, error)
        raise
    tracker.open_run(key, name=task, parent_key=parent, params={"task": task}, tags=run_tags)
    return work, search


def _with_winner(work: TaskWork, search: TaskSearch, registers: int | None) -> TaskWork:
    """Searches; returns the work with the recipe and the side network of the best trial."""
    outcomes = search.run(work.key)
    number, job = search.choose(outcomes, registers)
    work.say(chosen_line(outcomes, number, job.task.measure))
    return dataclasses.replace(work, job=job)


def _train_and_register(work: TaskWork) -> tuple[TaskRow, RegisteredVersion | None]:
    """The task's row and its version, which is None where MLflow did not answer."""
    training = Training.of(work.job, work.site, work.manifests)
    work.tracker.log_params(work.key, params(training.recipe, work.job, work.site))
    records = train(work, training)
    scores = [metrics_of(records), *_other_seeds(work)]
    work.set_stage("registering")
    version, away = None, None
    try:
        version = register_trained(work, training, records)
    except MlflowAwayError as error:  # the checkpoint is in storage: the same command registers it
        away = error.silence
    row = _row(work, records, scores, version, away)
    log_results(work, row, records, version)
    return row, version


def _other_seeds(work: TaskWork) -> list[dict[str, float]]:
    """Trains with the seeds that follow the job's, each in an MLflow run of its own; returns their metrics."""
    found = []
    for seed in range(work.job.seed + 1, work.job.seed + work.job.num_seeds):
        job = dataclasses.replace(work.job, seed=seed)
        other = dataclasses.replace(work, job=job, key=f"{work.key}/seed-{seed}")
        training = Training.of(job, work.site, work.manifests)
        run_params = params(training.recipe, job, work.site)
        work.tracker.open_run(other.key, name=f"{work.name} seed {seed}", parent_key=work.key, params=run_params)
        with _closing_on_error(other):
            found.append(metrics_of(train(other, training)))
        work.tracker.log_metrics(other.key, job.recipe.epochs, found[-1])
        work.tracker.close_run(other.key, "FINISHED")
    return found


def _row(
    work: TaskWork,
    records: Records,
    scores: Sequence[dict[str, float]],
    version: RegisteredVersion | None,
    away: str | None,
) -> TaskRow:
    """The row of a task that was trained.

    Args:
        work: the task.
        records: the records of the first seed's runs.
        scores: the metrics of each seed.
        version: the registered version; None if MLflow was away.
        away: the reason if there is no version.
    """
    final = records["final"].results
    registered = {}
    if version is not None:
        registered = {"version": version.version, "champion": version.is_champion, "run_id": version.run_id}
    return TaskRow.of(
        work.job.task,
        "pending" if version is None else "done",
        **over_seeds(scores, work.job.task.measure),
        **registered,
        published=published(work.job, work.site),
        subset_reasons=work.subset_reasons,
        parameters=final["parameters"],
        images_per_second=final["images_per_second"],
        seconds=sum(record.results["device_seconds"] for record in records.values()),
        doubts=doubts_of(work, records),
        error=away,
    )


def _close(work: TaskWork, row: TaskRow, version: RegisteredVersion | None, seconds: float) -> None:
    """Closes the MLflow run, and prints the task's results."""
    work.tracker.close_run(work.key, "KILLED" if version is None else "FINISHED")
    measure = row.measure.to_dict()
    work.set_stage(row.status, val=row.val, test=row.test, measure=measure, version=row.version)
    if version is None:
        standing = f"not registered: {row.error}"
    else:
        reason = "champion" if version.is_champion else f"not champion: {version.reason}"
        standing = f"version {version.version} ({reason})"
    assert row.test is not None
    for doubt in row.doubts:
        work.say(f"doubtful: {doubt}")
    work.say(f"{results_text(row.measure, row.val, row.test)}, {standing}, {seconds:.0f} s")
