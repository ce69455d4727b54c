"""The step ``train`` of one task: its selection run and its final run, made once and reported as they go."""

from __future__ import annotations

from functools import partial
from typing import Any

from safetensors.torch import save as save_tensors

from pipeline.cluster.resources import counted_workers
from pipeline.console.progress import Progress
from pipeline.storage.files import StorageError, join, write_bytes
from pipeline.tasks.measure_text import metric_text
from pipeline.tracking.code_version import code_version
from pipeline.training import checkpoints
from pipeline.workflow.job import TaskWork, Training
from pipeline.workflow.lease import Lease
from pipeline.workflow.record import Records, RunRecord, records_of
from pipeline.workflow.tracking import log_pictures, log_row


def train(work: TaskWork, training: Training) -> Records:
    """The records of the task's runs, which are trained now or were trained before."""
    job, protocols = work.job, training.protocols
    unit = join(work.site.places.storage, "train", f"{work.name}-{training.fingerprint[:16]}")
    work.set_stage("training", unit=unit, epochs=job.recipe.epochs)
    name = work.name if job.num_seeds == 1 else f"{work.name} seed {job.seed}"
    result, reused = work.steps.run(
        "train", training.inputs, lambda fingerprint, lease: _train(work, training, name, unit, fingerprint, lease)
    )
    records = records_of(result)
    try:
        checkpoints.discard(unit)
    except (StorageError, OSError) as error:
        work.say(f"its training checkpoints could not be removed ({error})")
    if reused:
        work.site.reporting.say(f"{name}: trained before, not again")
        for protocol in protocols:
            for row in records[protocol].history:
                log_row(work.tracker, work.key, protocol, row)
    for protocol in protocols:
        log_pictures(work, protocol, records[protocol])
    return records


def _train(
    work: TaskWork, training: Training, name: str, unit: str, fingerprint: str, lease: Lease
) -> dict[str, dict[str, Any]]:
    """Trains the runs; returns their records in JSON values."""
    site, plan = work.site, work.site.cluster.plan
    say = site.reporting.say
    text_of = partial(metric_text, work.job.measures)
    progress = Progress(name, training.protocols, work.job.recipe.epochs, say, text_of=text_of)

    def on_rows(run: int, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            log_row(work.tracker, work.key, training.protocols[run], row)
        progress(run, rows)

    where = "joining a pack" if plan.pack > 1 else f"starting {counted_workers(plan.asked_workers)}"
    say(f"{name}: {where}")
    runs = site.cluster.train(
        training.specs,
        folder=unit,
        attempt=lease.attempt,
        on_rows=on_rows,
        say=say,
        stopped=lambda: site.stop.is_set() or lease.lost.is_set(),
    )
    steps, found = work.steps, {}
    for protocol, run in zip(training.protocols, runs, strict=True):
        tensors = steps.name("train", fingerprint, f"-{lease.attempt}-{protocol}.safetensors")
        write_bytes(steps.file(tensors), save_tensors(run.tensors))
        record = RunRecord(history=run.history, results=run.results, tensors=tensors, code_version=code_version())
        found[protocol] = record.to_dict()
    return found
