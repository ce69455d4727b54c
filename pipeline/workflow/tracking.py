"""What a task's MLflow run holds: recipe and side network as params, identities as tags, metrics by epoch, pictures."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster.resources import workers_text
from pipeline.registry.versions import RegisteredVersion
from pipeline.reports.data_report import NUMBERS, PAGE
from pipeline.reports.pictures import confusion_matrix, training_curve
from pipeline.reports.rows import TaskRow
from pipeline.reports.stored_data_report import ensure_report, place_of_report
from pipeline.storage.files import copy, join
from pipeline.tasks.recipe import Recipe
from pipeline.tracking.code_version import code_version
from pipeline.tracking.tracker import Tracker
from pipeline.training.stopped import Stopped
from pipeline.workflow.job import PROTOCOLS, TaskJob, TaskWork, identities
from pipeline.workflow.record import Records, RunRecord, metrics_of
from pipeline.workflow.site import Site


def params(recipe: Recipe, job: TaskJob, site: Site) -> dict[str, Any]:
    """The params by which runs are compared in MLflow's table: the recipe and the side network."""
    fields = {**dataclasses.asdict(recipe), **job.hsn.to_dict()}
    as_set = {k: ",".join(map(str, v)) if isinstance(v, (list, tuple)) else v for k, v in fields.items()}
    return {
        "task": job.task.name,
        "backbone": site.backbone.name,
        "seed": job.seed,
        "num_workers": workers_text(site.cluster.plan.asked_workers),
        "pack": site.cluster.plan.pack,
        **as_set,
    }


def tags(work: TaskWork) -> dict[str, str]:
    """The tags of a task's run."""
    return {
        "group": work.job.task.group,
        "backbone_identity": work.site.backbone.identity,
        "protocol": PROTOCOLS[work.job.select],
        "code_version": code_version(),
        **{f"data_manifest_sha256.{split}": sha256 for split, sha256 in identities(work.manifests).items()},
        **({"subset": "; ".join(work.subset_reasons)} if work.subset_reasons else {}),
    }


def log_row(tracker: Tracker, key: str, run: str, row: dict[str, Any]) -> None:
    """Log one epoch: ``val/...`` and ``test/...`` keep their names, other metrics begin with the run's name."""
    metrics = {
        (name if name.startswith(("val/", "test/", "system/")) else f"{run}/{name.removeprefix('train/')}"): float(
            value
        )
        for name, value in row.items()
        if name != "epoch"
    }
    tracker.log_metrics(key, int(row["epoch"]), metrics)


def log_pictures(work: TaskWork, run: str, record: RunRecord) -> None:
    """Log the training curve of a run, and the confusion matrix of each split that has one."""
    with tempfile.TemporaryDirectory() as folder:
        curve = Path(folder) / f"{run}-curve.png"
        training_curve(record.history, curve, measures=work.job.measures, title=f"{work.name}, {run} run")
        work.tracker.log_artifact(work.key, curve, "pictures")
        for name, counts in record.results.items():
            if name.startswith("confusion/"):
                picture = Path(folder) / f"{name.replace('/', '-')}.png"
                title = f"{work.name}, {run} run, {name.rpartition('/')[2]}"
                confusion_matrix(np.asarray(counts), work.manifests["test"].class_names, picture, title=title)
                work.tracker.log_artifact(work.key, picture, "pictures")


def log_results(work: TaskWork, row: TaskRow, records: Records, version: RegisteredVersion | None) -> None:
    """Log what came of a task that was trained."""
    final = records["final"]
    registered = {}
    if version is not None:
        registered = {"registered_version": version.version, "champion": version.reason}
    work.tracker.set_tags(
        work.key, {**registered, "device": final.results["device"], "code_version": final.code_version}
    )
    assert row.seconds is not None
    work.tracker.log_metrics(
        work.key,
        work.job.recipe.epochs,
        {
            **metrics_of(records),
            **_over_seeds(row),
            "images_per_second": final.results["images_per_second"],
            "device_seconds": row.seconds,
            "peak_memory_bytes": final.results["peak_memory_bytes"],
            "parameters": final.results["parameters"],
        },
    )


def _over_seeds(row: TaskRow) -> dict[str, float]:
    """Mean and standard deviation of val and test, where there is more than one seed."""
    found = {"val": (row.val, row.val_std), "test": (row.test, row.test_std)}
    means = {f"{split}_mean": mean for split, (mean, std) in found.items() if mean is not None and std is not None}
    return means | {f"{split}_std": std for split, (_, std) in found.items() if std is not None}


def log_data_report(work: TaskWork) -> None:
    """Log the report of the task's data, and print its warnings at once."""
    folder = place_of_report(work.manifests, work.site.places.storage)
    for warning in ensure_report(work.manifests, folder):
        work.say(f"data: {warning}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in (PAGE, NUMBERS):
            copy(join(folder, name), str(Path(scratch) / name))
            work.tracker.log_artifact(work.key, Path(scratch) / name, "data")


def close_failed(tracker: Tracker, key: str, error: BaseException) -> None:
    """Close a run with its error. A run that was stopped has none: it will go on."""
    if isinstance(error, Stopped):
        tracker.close_run(key, "KILLED")
        return
    tracker.set_tags(key, {"error": str(error) or type(error).__name__})
    tracker.close_run(key, "FAILED")
