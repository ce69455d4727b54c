"""A split's manifest: its shards, and the size, the hash and the number of samples of each.

The manifest is written last: a split without a valid one does not exist. Its bytes depend only on the samples, not on
paths or dates, so equal data has an equal `sha256` everywhere.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from hst.checkpoint_header import TASK_NAME
from pipeline.data.annotations import ANNOTATIONS
from pipeline.data.errors import DataError
from pipeline.storage import files

FORMAT_VERSIONS = (3, 4)
"""Version 4 names the annotation, version 3 does not. Manifests of class labels stay in version 3, so equal data has
equal manifests, whichever version of this code wrote them."""
CLASS_ANNOTATION = "class"
SPLITS = ("train", "val", "trainval", "test")
OWN_SPLITS = ("train", "val", "test")
"""The splits with their own samples; trainval consists of train and val."""
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.jsonl"
# A file lies beside the manifest, or in the folder of another split of the task (trainval uses train's and val's).
_FOLDER = rf"(\.\./({'|'.join(SPLITS)})/)?"
_SHARD_NAME = re.compile(rf"{_FOLDER}[A-Za-z0-9_-]+\.tar")
_INDEX_NAME = re.compile(_FOLDER + re.escape(INDEX_NAME))
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file."""

    name: str
    """Path relative to the manifest's folder."""
    bytes: int
    """Size of the file."""
    sha256: str
    """sha256 of the file, in hexadecimal."""
    num_samples: int
    """Number of samples, at least 1."""


@dataclass(frozen=True, kw_only=True)
class IndexFile:
    """A file that says where each sample is (see `pipeline.data.shards.index`)."""

    name: str
    """Path relative to the manifest's folder."""
    sha256: str
    """sha256 of the file, in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One split of one task, as it was written."""

    task: str
    """The task's full name."""
    split: str
    """train, val, trainval or test."""
    class_names: tuple[str, ...]
    """Name of each class, by label."""
    source: dict[str, Any]
    """Layout, fingerprint of the samples, and how val was made if the source had none."""
    shards: tuple[Shard, ...]
    """The shards, in the order of the samples."""
    indexes: tuple[IndexFile, ...]
    """The index files; together they list every sample, in that order."""
    annotation: str = CLASS_ANNOTATION
    """What the samples are labelled with: a key of `pipeline.data.annotations.ANNOTATIONS`."""
    uri: str = ""
    """URI of this manifest; it is not part of the file."""

    @property
    def format_version(self) -> int:
        """Format version of this file and the shards."""
        return 3 if self.annotation == CLASS_ANNOTATION else 4

    @property
    def num_samples(self) -> int:
        """Number of samples over all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def sha256(self) -> str:
        """sha256 of the manifest file, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def shard_uri(self, shard: Shard) -> str:
        """URI of a shard of this manifest."""
        return files.join(self.uri, "..", shard.name)

    def to_bytes(self) -> bytes:
        """The manifest file: JSON; equal content gives equal bytes."""
        content = {name: value for name, value in dataclasses.asdict(self).items() if name != "uri"}
        content["format_version"] = self.format_version
        if self.annotation == CLASS_ANNOTATION:
            del content["annotation"]
        return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def manifest_uri(shards_uri: str, task: str, split: str) -> str:
    """URI of the manifest of a task's split below a root of shards."""
    return files.join(shards_uri, task, split, MANIFEST_NAME)


def load_manifest(uri: str) -> Manifest:
    """Reads a manifest and checks all of it except the shards themselves.

    Raises:
        DataError: There is no manifest, or this code did not write it.
    """
    try:
        data = files.read_bytes(uri)
    except FileNotFoundError:
        raise DataError(
            f"no manifest {uri}: this split was never written, or not to its end; write its shards again"
        ) from None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{uri}: not a manifest ({error}); write the split's shards again") from error
    faults = _faults(content)
    if faults:
        raise DataError(f"{uri}: not a manifest of this format; write the split's shards again", faults)
    manifest = Manifest(
        task=content["task"],
        split=content["split"],
        class_names=tuple(content["class_names"]),
        source=content["source"],
        shards=tuple(Shard(**shard) for shard in content["shards"]),
        indexes=tuple(IndexFile(**file) for file in content["indexes"]),
        annotation=content.get("annotation", CLASS_ANNOTATION),
        uri=files.absolute(uri, reading=True),
    )
    if manifest.to_bytes() != data:
        raise DataError(f"{uri}: changed after it was written; write the split's shards again")
    return manifest


def _faults(content: Any) -> list[str]:
    """All reasons why a JSON value is not a manifest."""
    if not isinstance(content, dict):
        return [f"expected an object, found {type(content).__name__}"]
    version = content.get("format_version")
    if version not in FORMAT_VERSIONS:
        return [f"format_version is {version!r}; this code reads {' and '.join(map(str, FORMAT_VERSIONS))}"]
    expected = {field.name for field in dataclasses.fields(Manifest)} - {"uri"} | {"format_version"}
    if version == 3:
        expected -= {"annotation"}
    if set(content) != expected:
        return [f"expected the fields {sorted(expected)}, found {sorted(content)}"]
    faults = []
    if not isinstance(content["task"], str) or not TASK_NAME.fullmatch(content["task"]):
        faults.append(f"task is {content['task']!r}, no task name")
    if content["split"] not in SPLITS:
        faults.append(f"split is {content['split']!r}, expected one of {', '.join(SPLITS)}")
    annotation = content.get("annotation", CLASS_ANNOTATION)
    if annotation not in ANNOTATIONS:
        faults.append(f"annotation is {annotation!r}, expected one of {', '.join(ANNOTATIONS)}")
    names = content["class_names"]
    least = int(annotation == CLASS_ANNOTATION)
    if not isinstance(names, list) or len(names) < least or not all(isinstance(name, str) for name in names):
        faults.append("class_names: expected a list of texts" + (", at least one" if least else ""))
    if not isinstance(content["source"], dict):
        faults.append("source: expected an object")
    indexes = content["indexes"]
    if not isinstance(indexes, list) or not indexes:
        faults.append("indexes: expected a list, at least one")
    else:
        faults += [f"indexes[{i}]: {fault}" for i, file in enumerate(indexes) if (fault := _index_fault(file))]
    shards = content["shards"]
    if not isinstance(shards, list) or not shards:
        return [*faults, "shards: expected a list, at least one"]
    faults += [f"shards[{i}]: {fault}" for i, shard in enumerate(shards) if (fault := _shard_fault(shard))]
    if not faults and len({shard["name"] for shard in shards}) < len(shards):
        faults.append("shards: one name stands twice")
    return faults


def _index_fault(file: Any) -> str:
    if not isinstance(file, dict) or set(file) != {field.name for field in dataclasses.fields(IndexFile)}:
        return "expected an object with name and sha256"
    if not isinstance(file["name"], str) or not _INDEX_NAME.fullmatch(file["name"]):
        return f"name is {file['name']!r}, expected {INDEX_NAME} of one of the task's splits"
    if not isinstance(file["sha256"], str) or not _SHA256.fullmatch(file["sha256"]):
        return f"sha256 is {file['sha256']!r}, expected 64 hexadecimal digits"
    return ""


def _shard_fault(shard: Any) -> str:
    if not isinstance(shard, dict) or set(shard) != {field.name for field in dataclasses.fields(Shard)}:
        return "expected an object with name, bytes, sha256 and num_samples"
    if not isinstance(shard["name"], str) or not _SHARD_NAME.fullmatch(shard["name"]):
        return f"name is {shard['name']!r}, which leads out of the task's folder or is no .tar"
    if not isinstance(shard["sha256"], str) or not _SHA256.fullmatch(shard["sha256"]):
        return f"sha256 is {shard['sha256']!r}, expected 64 hexadecimal digits"
    for name in ("bytes", "num_samples"):
        if type(shard[name]) is not int or shard[name] < 1:
            return f"{name} is {shard[name]!r}, expected a whole number of at least 1"
    return ""
