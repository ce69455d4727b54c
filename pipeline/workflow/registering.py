"""A trained task's light checkpoint, made once and kept in storage, and its version in the registry."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors

from hst.checkpoint import save_checkpoint
from pipeline.data.shards.manifest import Manifest
from pipeline.registry.versions import RegisteredVersion, register
from pipeline.storage.files import read_bytes, write_bytes
from pipeline.training.unit import preprocessing_of
from pipeline.workflow.job import PROTOCOLS, Site, TaskJob, Training, identities
from pipeline.workflow.lease import Lease


def register_trained(
    training: Training,
    job: TaskJob,
    site: Site,
    key: str,
    manifests: dict[str, Manifest],
    records: dict[str, dict[str, Any]],
    metrics: dict[str, float],
) -> RegisteredVersion:
    """The final run's weights with the selection run's val, as a version of the task's registered model.

    The checkpoint is made once and kept in storage; registering the same file for the same run again changes nothing.
    Raises MlflowAwayError when the checkpoint is there, and MLflow is not.
    """
    steps = site.steps(job.task.name)
    classes = list(manifests["test"].class_names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{job.task.name}.safetensors"

        def work(fingerprint: str, lease: Lease) -> dict[str, Any]:
            tensors = load_tensors(read_bytes(steps.file(records["final"]["tensors"])))
            save_checkpoint(
                path,
                {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()},  # float64 runs, too
                task=job.task.name,
                kind=job.task.kind,
                measure=job.task.measure.to_dict(),
                class_names=classes,
                method=job.method,
                head=job.head(classes),
                preprocessing=preprocessing_of(job.recipe).to_dict(),
                backbone={"name": site.backbone_name, "identity": site.backbone_identity},
                metrics=metrics,
                code_version=records["final"]["code_version"],
                provenance=_provenance(training, job, manifests, records),
            )
            name = steps.name("checkpoint", fingerprint, f"-{lease.attempt}.safetensors")
            write_bytes(steps.file(name), path.read_bytes())
            return {"checkpoint": name}

        record, _ = steps.run("checkpoint", {"train": training.fingerprint, "splits": identities(manifests)}, work)
        path.write_bytes(read_bytes(steps.file(record["checkpoint"])))
        run_id = site.tracker.run_id(key)
        with steps.alone("register"):
            return register(
                site.tracking_uri,
                path,
                run_id=run_id,
                prefix=site.registry_prefix,
                patience=site.tracker.patience,
            )


def _provenance(
    training: Training, job: TaskJob, manifests: dict[str, Manifest], records: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    final = records["final"]["results"]
    return {
        "seed": job.seed,
        "recipe": dataclasses.asdict(training.recipe),
        "protocol": PROTOCOLS[job.select],
        "data_manifest_sha256": identities(manifests),
        **{
            k: final[k]
            for k in ("precision", "memory", "images_per_second", "device_seconds", "peak_memory_bytes", "device")
        },
    }
