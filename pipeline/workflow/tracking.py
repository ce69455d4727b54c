"""What a task's MLflow run holds: recipe and side network as params, identities as tags, metrics by epoch, pictures."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from hst.lookup import load
from pipeline.cluster.resources import workers_text
from pipeline.console.secrets import error_text
from pipeline.kinds.kind import task_kind
from pipeline.registry.versions import RegisteredVersion
from pipeline.reports.data_report import NUMBERS, PAGE
from pipeline.reports.pictures import training_curve
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
    method = {name: value for name, value in job.method.items() if name != "name"}
    fields = {**dataclasses.asdict(recipe), **method}
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
    """Log the training curve of a run, and what the task's kind draws of each evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        curve = Path(folder) / f"{run}-curve.png"
        training_curve(record.history, curve, measures=work.job.measures, title=f"{work.name}, {run} run")
        work.tracker.log_artifact(work.key, curve, "pictures")
        class_names, draw = work.manifests["test"].class_names, load(task_kind(work.job.task.kind).pictures)
        for split, details in _details(record).items():
            title = f"{work.name}, {run} run, {split}"
            for drawn in draw(details, class_names, Path(folder), title=title):
                picture = drawn.rename(drawn.with_name(f"{drawn.stem}-{split}{drawn.suffix}"))
                work.tracker.log_artifact(work.key, picture, "pictures")


def doubts_of(work: TaskWork, records: Records) -> tuple[str, ...]:
    """What the task's kind says against the results of its runs."""
    kind, class_names = task_kind(work.job.task.kind), work.manifests["test"].class_names
    return tuple(
        f"{split}: {doubt}"
        for record in records.values()
        for split, details in _details(record).items()
        for doubt in kind.doubts(details, class_names, record.history[-1]["train/loss"])
    )


def _details(record: RunRecord) -> dict[str, dict[str, Any]]:
    """By split, the details that its metric kept under ``<name>/<split>``."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in record.results.items():
        detail, slash, split = name.rpartition("/")
        if slash:
            found.setdefault(split, {})[detail] = value
    return found


def log_results(work: TaskWork, row: TaskRow, records: Records, version: RegisteredVersion | None) -> None:
    """Log what came of a task that was trained."""
    final = records["final"]
    registered = {}
    if version is not None:
        registered = {"registered_version": version.version, "champion": version.reason}
    doubted = {"doubtful": "; ".join(row.doubts)} if row.doubts else {}
    work.tracker.set_tags(
        work.key, {**registered, **doubted, "device": final.results["device"], "code_version": final.code_version}
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
    decoding = work.job.recipe.decoding
    folder = place_of_report(work.manifests, work.site.places.storage, decoding)
    for warning in ensure_report(work.manifests, folder, decoding):
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
    tracker.set_tags(key, {"error": error_text(error)})
    tracker.close_run(key, "FAILED")
