"""A trained task's light checkpoint, made once and kept in storage, and its version in the registry."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors

from hst.checkpoint import save_checkpoint
from pipeline.registry.versions import RegisteredVersion, register
from pipeline.storage.files import read_bytes, write_bytes
from pipeline.training.unit import preprocessing_of
from pipeline.workflow.job import PROTOCOLS, TaskWork, Training, identities
from pipeline.workflow.lease import Lease, LeaseLostError
from pipeline.workflow.record import Records, metrics_of


def register_trained(work: TaskWork, training: Training, records: Records) -> RegisteredVersion:
    """Register the final run's weights, with the selection run's val, as a version of the task's model.

    The checkpoint is made once and kept in storage; registering the same file for the same run again changes nothing.

    Raises:
        MlflowAwayError: MLflow did not answer; the checkpoint is in storage by then.
    """
    steps, places = work.steps, work.site.places
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{work.name}.safetensors"

        def make(fingerprint: str, lease: Lease) -> dict[str, Any]:
            _write_checkpoint(path, work, training, records)
            name = steps.name("checkpoint", fingerprint, f"-{lease.attempt}.safetensors")
            write_bytes(steps.file(name), path.read_bytes())
            return {"checkpoint": name}

        inputs = {
            "train": training.fingerprint,
            "splits": identities(work.manifests),
            "measure": work.job.task.measure.to_dict(),
        }
        record, _ = steps.run("checkpoint", inputs, make)
        path.write_bytes(read_bytes(steps.file(record["checkpoint"])))
        run_id = work.tracker.run_id(work.key)
        while True:
            try:
                with steps.alone("register") as held:
                    return register(
                        places.tracking_uri,
                        path,
                        run_id=run_id,
                        prefix=places.registry_prefix,
                        patience=work.tracker.patience,
                        check=held.check,
                    )
            except LeaseLostError:
                work.say("register: another driver took over while this one was silent; waiting for it to end")


def _write_checkpoint(path: Path, work: TaskWork, training: Training, records: Records) -> None:
    job, backbone, final = work.job, work.site.backbone, records["final"]
    classes = list(work.manifests["test"].class_names)
    tensors = load_tensors(read_bytes(work.steps.file(final.tensors)))
    save_checkpoint(
        path,
        {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()},  # float64 runs, too
        task=work.name,
        kind=job.task.kind,
        measure=job.task.measure.to_dict(),
        class_names=classes,
        method=final.results["method"],
        head=final.results["head"],
        preprocessing=preprocessing_of(job.recipe, work.site.backbone.name).to_dict(),
        backbone={"name": backbone.name, "identity": backbone.identity},
        metrics=metrics_of(records),
        code_version=final.code_version,
        provenance=_provenance(work, training, records),
    )


def _provenance(work: TaskWork, training: Training, records: Records) -> dict[str, Any]:
    final = records["final"].results
    return {
        "seed": work.job.seed,
        "recipe": dataclasses.asdict(training.recipe),
        "protocol": PROTOCOLS[work.job.select],
        "data_manifest_sha256": identities(work.manifests),
        "val_images": work.manifests["val"].num_samples,
        **{
            k: final[k]
            for k in ("precision", "memory", "images_per_second", "device_seconds", "peak_memory_bytes", "device")
        },
    }
