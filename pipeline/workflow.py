"""One task from shards to a registered checkpoint: shards -> selection run -> final run (one look at test) -> register.

Every step is durable (`pipeline.steps`): run again, what is finished is skipped and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hst.checkpoint import save_checkpoint
from hst.config import HSNConfig
from pipeline.code_version import code_version
from pipeline.data.manifest import Manifest
from pipeline.data.shards import prepare_task
from pipeline.data.sources import open_source
from pipeline.registry import register
from pipeline.reports.pictures import confusion_matrix, training_curve
from pipeline.resources import Plan
from pipeline.steps import Steps
from pipeline.storage import file_sha256, join, read_bytes, write_bytes
from pipeline.tasks.catalogue import Task
from pipeline.tasks.recipe import Recipe
from pipeline.tracking import Tracker
from pipeline.training.driver import train_unit
from pipeline.training.unit import RunSpec, preprocessing_of

SPLIT_SEED = 0
"""Of the tenth that becomes val where a source has none: runs with other seeds are compared on the same val."""

PROTOCOLS = {
    True: "train, last epoch on val; then trainval, last epoch on test once",
    False: "no selection run; trainval, last epoch on test once",
}


@dataclass(frozen=True, kw_only=True)
class TaskJob:
    """One task of a fan-out, as it will be trained."""

    task: Task
    recipe: Recipe
    hsn: HSNConfig
    """Resolved for the backbone."""
    seed: int
    data: str
    """URI of the raw data or shards."""
    select: bool = True
    """Make the selection run; without it the version is never promoted by itself."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a fan-out's tasks are trained, stored and recorded; the same for all of them."""

    storage: str
    tracking_uri: str
    registry_prefix: str
    backbone_name: str
    backbone_identity: str
    backbone: Any
    """Of `pipeline.training.driver.put_backbone`."""
    plan: Plan
    tracker: Tracker
    parent_key: str
    """The tracker's key of the fan-out's run."""
    say: Callable[[str], None]
    """Prints a line of progress."""


def run_task(job: TaskJob, site: Site) -> dict[str, Any]:
    """Everything for one task; returns its row of the final table. Raises what stopped it."""
    started = time.monotonic()
    task, key = job.task.name, f"{site.parent_key}/{job.task.name}"
    manifests, reasons = _shards(job, site)
    run_id = site.tracker.open_run(
        key, name=task, parent_key=site.parent_key, params=_params(job, site), tags=_tags(job, site, manifests, reasons)
    )
    try:
        steps = Steps(join(site.storage, "workflows"), task)
        records = _train(job, site, steps, manifests)
        metrics = {k: v for record in records.values() for k, v in record["results"]["metrics"].items()}
        version = _register(job, site, steps, manifests, records, metrics, run_id)
        final = records["final"]["results"]
        row = {
            "task": task,
            "group": job.task.group,
            "status": "done",
            "val": metrics.get(f"val/{job.task.metric}"),
            "test": metrics[f"test/{job.task.metric}"],
            "published": job.task.published.get("HST-B"),
            "subset_reasons": reasons,
            "parameters": final["parameters"],
            "images_per_second": final["images_per_second"],
            "seconds": sum(r["results"]["device_seconds"] for r in records.values()),
            "version": version["version"],
            "champion": version["champion"],
            "error": None,
        }
        site.tracker.set_tags(key, {"registered_version": str(version["version"]), "champion": version["reason"]})
        site.tracker.log_metrics(
            key,
            job.recipe.epochs,
            {
                **metrics,
                "images_per_second": final["images_per_second"],
                "device_seconds": row["seconds"],
                "peak_memory_bytes": final["peak_memory_bytes"],
                "parameters": final["parameters"],
            },
        )
    except BaseException:
        site.tracker.close_run(key, "FAILED")
        raise
    site.tracker.close_run(key, "FINISHED")
    val = "" if row["val"] is None else f"val {row['val']:.1%}, "
    site.say(
        f"{task}: {val}test {row['test']:.1%}, version {row['version']}"
        f"{' (champion)' if row['champion'] else ''}, {time.monotonic() - started:.0f} s"
    )
    return row


def _shards(job: TaskJob, site: Site) -> tuple[dict[str, Manifest], list[str]]:
    """Verified shards of every split, and why the data is not the full benchmark's (empty where it is)."""
    manifests = prepare_task(job.task, job.data, join(site.storage, "shards"), seed=SPLIT_SEED)
    return manifests, open_source(job.data, job.task, seed=SPLIT_SEED).subset_reasons


def _spec(kind: str, job: TaskJob, site: Site, manifests: dict[str, Manifest]) -> RunSpec:
    train, evaluated = ("train", "val") if kind == "selection" else ("trainval", "test")
    return RunSpec(
        task=job.task.name,
        protocol=kind,
        seed=job.seed,
        recipe=dataclasses.asdict(job.recipe),
        hsn=job.hsn.to_dict(),
        num_classes=len(manifests[train].class_names),
        train=manifests[train].uri,
        evaluate=manifests[evaluated].uri,
        data_sha256={split: manifests[split].sha256 for split in (train, evaluated)},
        backbone_name=site.backbone_name,
        backbone_identity=site.backbone_identity,
    )


def _train(job: TaskJob, site: Site, steps: Steps, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The selection run and the final run, one unit: by run, its history, its results and the URI of its tensors."""
    kinds = ["selection", "final"] if job.select else ["final"]
    specs = [_spec(kind, job, site, manifests) for kind in kinds]
    key, task = f"{site.parent_key}/{job.task.name}", job.task.name
    progress = Progress(task, kinds, job.recipe.epochs, site.say)

    def on_rows(run: int, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            _log_row(site.tracker, key, kinds[run], row)
        progress(run, rows)

    def work(fingerprint: str) -> dict[str, Any]:
        runs = train_unit(
            specs,
            name=f"{task}-{fingerprint[:16]}",
            backbone=site.backbone,
            plan=site.plan,
            storage=join(site.storage, "train"),
            on_rows=on_rows,
        )
        record = {}
        for kind, run in zip(kinds, runs, strict=True):
            tensors = steps.uri("train", fingerprint, f"-{kind}.safetensors")
            write_bytes(tensors, save_tensors(run.tensors))
            record[kind] = {"history": run.history, "results": run.results, "tensors": tensors}
        return record

    # What comes out depends on what is in the shards and not on where they lie.
    inputs = [{**spec.to_dict(), "train": None, "evaluate": None} for spec in specs]
    record, reused = steps.run("train", {"runs": inputs, "num_workers": site.plan.num_workers}, work)
    if reused:
        site.say(f"{task}: trained before, not again")
        for kind in kinds:
            for row in record[kind]["history"]:
                _log_row(site.tracker, key, kind, row)
    for kind in kinds:
        _log_pictures(site, key, task, kind, record[kind], manifests)
    return record


class Progress:
    """One line for each evaluation, a tenth of the epochs apart: the latest of both runs and the time left."""

    def __init__(self, task: str, kinds: list[str], epochs: int, say: Callable[[str], None]) -> None:
        self.task, self.kinds, self.epochs, self.say = task, kinds, epochs, say
        self.latest: list[dict[str, Any] | None] = [None] * len(kinds)
        self.told = 0
        self.first: tuple[int, float] | None = None

    def __call__(self, run: int, rows: list[dict[str, Any]]) -> None:
        """Told of new rows of a run; rows that came before are passed over."""
        self.latest[run] = rows[-1]
        epochs = [0 if row is None else int(row["epoch"]) for row in self.latest]
        epoch = min(epochs)
        if not epoch or epoch != max(epochs):
            return
        if self.first is None:
            self.first = (epoch, time.monotonic())
        tenth = max(1, self.epochs // 10)
        if (epoch // tenth == self.told // tenth and epoch != self.epochs) or epoch <= self.told:
            return
        self.told = epoch
        parts = []
        for kind, row in zip(self.kinds, self.latest, strict=True):
            assert row is not None
            scores = "".join(
                f" {name} {value:.1%}" for name, value in row.items() if name.startswith(("val/", "test/"))
            )
            parts.append(f"{kind} loss {row['train/loss']:.3f}{scores}")
        row = self.latest[0]
        assert row is not None
        since, at = self.first
        left = ""
        if epoch > since and epoch < self.epochs:
            seconds = (time.monotonic() - at) / (epoch - since) * (self.epochs - epoch)
            left = f"  {seconds // 60:.0f}m{seconds % 60:02.0f}s left"
        self.say(
            f"{self.task} {epoch}/{self.epochs}  {'  '.join(parts)}  {row['images_per_second']:.0f} images/s{left}"
        )


def _log_row(tracker: Tracker, key: str, kind: str, row: dict[str, Any]) -> None:
    """One epoch: ``val/...`` and ``test/...`` under their names, the rest by the run they belong to."""
    metrics = {
        (name if name.startswith(("val/", "test/", "system/")) else f"{kind}/{name.removeprefix('train/')}"): float(
            value
        )
        for name, value in row.items()
        if name != "epoch"
    }
    tracker.log_metrics(key, int(row["epoch"]), metrics)


def _log_pictures(
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


def _register(
    job: TaskJob,
    site: Site,
    steps: Steps,
    manifests: dict[str, Manifest],
    records: dict[str, dict[str, Any]],
    metrics: dict[str, float],
    run_id: str,
) -> dict[str, Any]:
    """The final run's weights with the selection run's val, as a version of the task's registered model."""
    inputs = {
        "tensors": records["final"]["tensors"].rpartition("/")[2],
        "metrics": metrics,
        "tracking_uri": site.tracking_uri,
        "registry_prefix": site.registry_prefix,
        "run_id": run_id,
    }

    def work(fingerprint: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{job.task.name}.safetensors"
            save_checkpoint(
                path,
                load_tensors(read_bytes(records["final"]["tensors"])),
                task=job.task.name,
                class_names=list(manifests["test"].class_names),
                hsn=job.hsn.to_dict(),
                head={
                    "kind": job.task.kind,
                    "input": job.recipe.head_input,
                    "num_classes": len(manifests["test"].class_names),
                },
                preprocessing=preprocessing_of(job.recipe).to_dict(),
                backbone={"name": site.backbone_name, "identity": site.backbone_identity},
                metrics=metrics,
                code_version=code_version(),
                provenance=_provenance(job, manifests, records),
            )
            stored = steps.uri("register", fingerprint, ".safetensors")
            write_bytes(stored, path.read_bytes())
            version = register(site.tracking_uri, path, run_id=run_id, prefix=site.registry_prefix)
            return {
                "version": version.version,
                "champion": version.is_champion,
                "reason": version.reason,
                "sha256": file_sha256(path),
                "checkpoint": stored,
            }

    return steps.run("register", inputs, work)[0]


def _provenance(job: TaskJob, manifests: dict[str, Manifest], records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    final = records["final"]["results"]
    return {
        "seed": job.seed,
        "recipe": dataclasses.asdict(job.recipe),
        "protocol": PROTOCOLS[job.select],
        "data_manifest_sha256": {split: manifest.sha256 for split, manifest in manifests.items()},
        **{k: final[k] for k in ("precision", "images_per_second", "device_seconds", "peak_memory_bytes", "device")},
    }


def _params(job: TaskJob, site: Site) -> dict[str, Any]:
    """What runs are compared by in MLflow's table: the recipe and the side network."""
    recipe = {k: v for k, v in dataclasses.asdict(job.recipe).items() if k != "hsn"}
    return {
        "task": job.task.name,
        "backbone": site.backbone_name,
        "seed": job.seed,
        "num_workers": site.plan.num_workers,
        **recipe,
        **job.hsn.to_dict(),
        "hsn": job.recipe.hsn,
    }


def _tags(job: TaskJob, site: Site, manifests: dict[str, Manifest], reasons: list[str]) -> dict[str, str]:
    return {
        "group": job.task.group,
        "backbone_identity": site.backbone_identity,
        "protocol": PROTOCOLS[job.select],
        "code_version": code_version(),
        **{f"data_manifest_sha256.{split}": manifest.sha256 for split, manifest in manifests.items()},
        **({"subset": "; ".join(reasons)} if reasons else {}),
    }
