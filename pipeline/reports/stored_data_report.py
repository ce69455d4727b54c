"""The report of a task's data beside its shards: it is made once for the same data, and found again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.data.shards.index import load_index
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.reports.data_report import NUMBERS, write_data_report
from pipeline.reports.data_summary import ReportSample
from pipeline.storage import files

FOLDER = "report"
"""Name of the report's folder, which lies beside the splits' folders."""
_MADE_OF = "made-of.json"
_SPLITS = ("train", "val", "test")


def place_of_report(manifests: Mapping[str, Manifest], own_storage: str, decoding: str) -> str:
    """The folder of a task's report: beside its shards if they lie in our own storage, or if it is there already.

    Otherwise it has a place in our own storage, since other people's shards are only read.
    """
    train = manifests["train"]
    beside = files.join(train.uri, "../..", FOLDER)
    if beside.startswith(files.join(own_storage, ".") + "/") or _made_of(beside) == _sources(manifests, decoding):
        return beside
    name = hashlib.sha256(json.dumps(_sources(manifests, decoding)).encode()).hexdigest()[:16]
    return files.join(own_storage, "reports", train.task, name)


def ensure_report(manifests: Mapping[str, Manifest], folder_uri: str, decoding: str | None) -> list[str]:
    """Writes a task's report into a folder, local or s3://, unless there is one for these manifests.

    Args:
        manifests: The task's manifests.
        folder_uri: The report's folder.
        decoding: How the task's recipe reads image files; None keeps what the folder's report says.

    Returns:
        Its warnings, a sentence each.

    Raises:
        DataError: a shard is not what its manifest says.
    """
    found = _made_of(folder_uri)
    decoding = decoding or found.get("decoding", "shown")
    if found != _sources(manifests, decoding):
        marker = files.join(folder_uri, _MADE_OF)
        files.delete(marker)
        with tempfile.TemporaryDirectory() as scratch:
            train = manifests["train"]
            samples = {split: _samples(manifests[split]) for split in _SPLITS}
            names = train.class_names or (f"labelled with a {train.annotation}",)  # no classes: one group of images
            for path in write_data_report(Path(scratch), train.task, names, samples, decoding=decoding).files:
                files.copy(str(path), files.join(folder_uri, path.name))
        files.write_bytes(marker, json.dumps(_sources(manifests, decoding)).encode())
    return list(json.loads(files.read_bytes(files.join(folder_uri, NUMBERS)))["warnings"])


def is_stale(folder_uri: str, manifests: Mapping[str, Manifest]) -> bool:
    """Whether there is a report, and it describes other data than these manifests do."""
    found = _made_of(folder_uri)
    same = found == _sources(manifests, found.get("decoding", ""))
    return not same and bool(files.list_prefix(folder_uri))


def delete_report(folder_uri: str) -> None:
    """Removes a report, and first the file that says which data it describes."""
    for name in (_MADE_OF, *files.list_prefix(folder_uri)):
        files.delete(files.join(folder_uri, name))


def _made_of(folder_uri: str) -> dict[str, str]:
    """What the report in a folder describes; empty if there is none."""
    try:
        return dict(json.loads(files.read_bytes(files.join(folder_uri, _MADE_OF))))
    except FileNotFoundError:
        return {}


def _sources(manifests: Mapping[str, Manifest], decoding: str) -> dict[str, str]:
    return {**{split: manifests[split].sha256 for split in _SPLITS}, "decoding": decoding}


def _samples(manifest: Manifest) -> Iterator[ReportSample]:
    index = load_index(manifest)
    for sample in ShardReader(manifest, index).read(range(manifest.num_samples)):
        yield ReportSample(key=sample.key, label=sample.label if manifest.class_names else 0, image=sample.image)
