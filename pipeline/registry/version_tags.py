"""A version's tags: what MLflow keeps about a checkpoint, and the measure of its results.

A version that was registered before tags named a kind, a method and a measure is one of classification by HST, measured
by top1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hst.checkpoint_header import CheckpointHeader
from pipeline.tasks.kinds import TOP1, Measure

TASK_TAG = "hst.task"
_KIND = "classification"
"""The kind of versions that name none."""


def version_tags(header: CheckpointHeader, sha256: str, size_bytes: int, folder: str) -> dict[str, str]:
    """The tags of a new version.

    Args:
        header: the checkpoint's header.
        sha256: the hash of the whole file.
        size_bytes: the size of the file.
        folder: the folder among the run's artifacts where the file lies.
    """
    measure = Measure.from_dict(header.measure)
    tags: dict[str, Any] = {
        TASK_TAG: header.task,
        "sha256": sha256,
        "bytes": size_bytes,
        "file": f"{folder}/{header.task}.safetensors",
        "backbone_identity": header.backbone["identity"],
        "backbone_name": header.backbone["name"],
        "image_size": header.preprocessing.get("image_size"),
        "code_version": header.code_version,
        "kind": header.kind,
        "method": header.method["name"],
        "metric": measure.name,
        "metric_unit": measure.unit,
        "higher_is_better": measure.higher_is_better,
        **{name: header.provenance.get(name) for name in ("data_manifest_sha256", "protocol", "seed")},
        **{name.replace("/", "_"): value for name, value in header.metrics.items()},
    }
    return {name: _as_text(value) for name, value in tags.items() if value is not None}


def kind_of(tags: Mapping[str, str]) -> str:
    """The kind of the version's task."""
    return tags.get("kind", _KIND)


def measure_of(tags: Mapping[str, str]) -> Measure:
    """What the version is measured by."""
    if "metric" not in tags:
        return TOP1
    return Measure(
        name=tags["metric"],
        unit=tags.get("metric_unit", ""),  # a store may drop an empty text
        higher_is_better=tags.get("higher_is_better", "true") == "true",
    )


def result_of(tags: Mapping[str, str], split: str) -> float | None:
    """The version's result on ``val`` or ``test`` by its own measure; None where it has none."""
    text = tags.get(f"{split}_{measure_of(tags).name}")
    return None if text is None else float(text)


def _as_text(value: object) -> str:
    """Texts as they are, anything else as JSON. Equal values give equal JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
