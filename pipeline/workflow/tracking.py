"""What a task's MLflow run holds: recipe and side network as params, identities as tags, metrics by epoch, pictures."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster.resources import workers_text
from pipeline.data.shards.manifest import Manifest
from pipeline.reports.data_report import NUMBERS, PAGE
from pipeline.reports.pictures import confusion_matrix, training_curve
from pipeline.reports.stored_data_report import ensure_report, place_of_report
from pipeline.storage.files import copy, join
from pipeline.tasks.recipe import Recipe
from pipeline.tracking.code_version import code_version
from pipeline.tracking.tracker import Tracker
from pipeline.training.stopped import Stopped
from pipeline.workflow.job import PROTOCOLS, Site, TaskJob, identities


def params(recipe: Recipe, job: TaskJob, site: Site) -> dict[str, Any]:
    """What runs are compared by in MLflow's table: the recipe and the side network."""
    fields = {**dataclasses.asdict(recipe), **job.hsn.to_dict()}
    as_set = {k: ",".join(map(str, v)) if isinstance(v, (list, tuple)) else v for k, v in fields.items()}
    return {
        "task": job.task.name,
        "backbone": site.backbone_name,
        "seed": job.seed,
        "num_workers": workers_text(site.plan.asked_workers),
        "pack": site.plan.pack,
        **as_set,
    }


def tags(job: TaskJob, site: Site, manifests: dict[str, Manifest], reasons: list[str]) -> dict[str, str]:
    return {
        "group": job.task.group,
        "backbone_identity": site.backbone_identity,
        "protocol": PROTOCOLS[job.select],
        "code_version": code_version(),
        **{f"data_manifest_sha256.{split}": sha256 for split, sha256 in identities(manifests).items()},
        **({"subset": "; ".join(reasons)} if reasons else {}),
    }


def log_row(tracker: Tracker, key: str, kind: str, row: dict[str, Any]) -> None:
    """One epoch: ``val/...`` and ``test/...`` under their names, the rest by the run they belong to."""
    metrics = {
        (name if name.startswith(("val/", "test/", "system/")) else f"{kind}/{name.removeprefix('train/')}"): float(
            value
        )
        for name, value in row.items()
        if name != "epoch"
    }
    tracker.log_metrics(key, int(row["epoch"]), metrics)


def log_pictures(
    site: Site, key: str, task: str, kind: str, record: dict[str, Any], manifests: dict[str, Manifest]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        curve = Path(folder) / f"{kind}-curve.png"
        training_curve(record["history"], curve, title=f"{task}, {kind} run")
        site.tracker.log_artifact(key, curve, "pictures")
        for name, counts in record["results"].items():
            if name.startswith("confusion/"):
                picture = Path(folder) / f"{name.replace('/', '-')}.png"
                title = f"{task}, {kind} run, {name.rpartition('/')[2]}"
                confusion_matrix(np.asarray(counts), manifests["test"].class_names, picture, title=title)
                site.tracker.log_artifact(key, picture, "pictures")


def log_data_report(site: Site, key: str, task: str, manifests: dict[str, Manifest]) -> None:
    """What the task's data is, for people; its warnings are said at once."""
    folder = place_of_report(manifests, site.storage)
    for warning in ensure_report(manifests, folder):
        site.say(f"{task}: data: {warning}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in (PAGE, NUMBERS):
            copy(join(folder, name), str(Path(scratch) / name))
            site.tracker.log_artifact(key, Path(scratch) / name, "data")


def close_failed(site: Site, key: str, error: BaseException) -> None:
    """A run that was stopped has no error: it will go on."""
    if isinstance(error, Stopped):
        site.tracker.close_run(key, "KILLED")
        return
    site.tracker.set_tags(key, {"error": str(error) or type(error).__name__})
    site.tracker.close_run(key, "FAILED")
