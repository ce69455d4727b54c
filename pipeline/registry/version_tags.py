"""A version's tags: what MLflow keeps about a checkpoint, and the measure of its results.

A version that was registered before tags named a kind, a method and a measure is one of classification by HST, measured
by top1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hst.checkpoint_header import CheckpointHeader
from pipeline.tasks.kinds import PERCENT, TOP1, Measure

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
        **{name: header.provenance.get(name) for name in ("data_manifest_sha256", "protocol", "seed", "val_images")},
        **{name.replace("/", "_"): value for name, value in header.metrics.items()},
    }
    return {name: _as_text(value) for name, value in tags.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a version's tags say, read once. Tags come from a store that others write to, so any of them may be broken:
    what cannot be read is None and has a sentence in `faults`."""

    kind: str
    """The kind of the version's task."""
    measure: Measure
    """What the version is measured by."""
    val: float | None
    """Its result on val by its own measure."""
    test: float | None
    """Its result on test by its own measure."""
    val_images: int | None
    """Number of images of val; None in versions from before it was recorded."""
    size_bytes: int | None
    """Size of the file."""
    backbone_identity: str | None
    """sha256 of the frozen ViT's weights."""
    data: dict[str, str]
    """sha256 of each split's manifest."""
    faults: dict[str, str]
    """The tags that cannot be read, each with what it holds and what was expected."""

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Facts:
        """Reads the tags of a version."""
        measure, faults = _measure_of(tags), {}

        def read(tag: str, reader: Callable[[str], Any], expected: str) -> Any:
            if tag not in tags:
                return None
            try:
                return reader(tags[tag])
            except (ValueError, TypeError):
                faults[tag] = f"{tag} is {tags[tag][:40]!r}, expected {expected}"
                return None

        number = (_share, "a fraction from 0 to 1") if measure.unit == PERCENT else (_finite, "a finite number")
        return cls(
            kind=tags.get("kind", _KIND),
            measure=measure,
            val=read(f"val_{measure.name}", *number),
            test=read(f"test_{measure.name}", *number),
            val_images=read("val_images", _count, "a whole number above 0"),
            size_bytes=read("bytes", _count, "a whole number above 0"),
            backbone_identity=read("backbone_identity", _identity, "64 hexadecimal digits"),
            data=read("data_manifest_sha256", _table, "a table of splits and hashes") or {},
            faults=faults,
        )

    def result(self, split: str) -> float | None:
        """The result on ``val`` or ``test``; None where there is none that can be read."""
        return {"val": self.val, "test": self.test}[split]

    def fault_of(self, split: str) -> str | None:
        """What is wrong with the result on a split."""
        return self.faults.get(f"{split}_{self.measure.name}")


def _measure_of(tags: Mapping[str, str]) -> Measure:
    if "metric" not in tags:
        return TOP1
    return Measure(
        name=tags["metric"],
        unit=tags.get("metric_unit", ""),  # a store may drop an empty text
        higher_is_better=tags.get("higher_is_better", "true") == "true",
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError(text)
    return value


def _identity(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(text)
    return text


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _table(text: str) -> dict[str, str]:
    return {str(split): str(sha256) for split, sha256 in dict(json.loads(text)).items()}


def _as_text(value: object) -> str:
    """Texts as they are, anything else as JSON. Equal values give equal JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
