"""The header of a light checkpoint, and the hashes that prove the file undamaged.

Layout (safetensors, https://github.com/huggingface/safetensors#format)::

    8 bytes   N, little endian: length of the JSON that follows
    N bytes   {"__metadata__": {"hst": "<the header as JSON text>"}, "<tensor>": {dtype, shape, ...}, ...}
    the rest  tensor bytes

Two hashes inside the file allow checking it offline. ``tensors_sha256`` is the hash of the tensor bytes.
``header_sha256`` is the hash of the first 8 + N bytes exactly as stored, with its own 64 digits written as zeros.
Together they cover every byte, so a single flipped bit is found anywhere, even in the padding.

This module needs only the standard library, so a tool can inspect checkpoints without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 knew only classification with HST; its headers are read as such."""
METADATA_KEY = "hst"
MAX_HEADER_BYTES = 16 * 2**20  # 397 classes take 40 kB; a larger header is not ours and is not read
TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
UNSIGNED = "0" * 64
"""Replaces ``header_sha256`` while that hash is computed."""
_HEX64 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 2**20
_MEASURE_FIELDS = {"name", "unit", "higher_is_better"}


class CheckpointError(ValueError):
    """The file is no sound light checkpoint, or does not fit the purpose it was opened for."""


@dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """The header of a light checkpoint."""

    format_version: int
    """Version of this layout; a reader refuses versions that it does not know."""
    task: str
    """Name of the task, ``[a-z0-9][a-z0-9_-]*``."""
    kind: str
    """What the task predicts, such as ``classification``."""
    measure: dict[str, Any]
    """The measure by which results are compared: ``{"name": "top1", "unit": "%", "higher_is_better": true}``."""
    class_names: list[str]
    """Names of the classes, in the order of the logits; empty if the task has none."""
    method: dict[str, Any]
    """How the task was tuned: ``{"name": "hst", ...}`` with the method's resolved configuration."""
    head: dict[str, Any]
    """``{"kind": "classification", "input": "side" | "side+cls", "num_classes": ...}``, or another head's fields."""
    preprocessing: dict[str, Any]
    """``Preprocessing.to_dict()``: how an image file becomes the model's input."""
    backbone: dict[str, Any]
    """``{"name": timm name, "identity": sha256 of the frozen weights}``."""
    metrics: dict[str, float]
    """Results by metric name (``val/top1``, ``test/top1``)."""
    code_version: str
    """Version of the code that wrote the file."""
    provenance: dict[str, Any]
    """Where it comes from: seed, recipe, protocol, sha256 of the data manifests, and anything else the run recorded."""
    tensors_sha256: str
    """sha256 of the tensor bytes."""
    header_sha256: str
    """sha256 of everything before the tensor bytes, with these 64 digits as zeros."""

    def __post_init__(self) -> None:
        faults = _header_faults(self)
        if faults:
            raise CheckpointError("invalid checkpoint header: " + "; ".join(faults))

    @property
    def hsn(self) -> dict[str, Any]:
        """The fields of `hst.config.HSNConfig`; empty if the method is not HST."""
        return {k: v for k, v in self.method.items() if k != "name"} if self.method["name"] == "hst" else {}

    def to_dict(self) -> dict[str, Any]:
        """The header as plain JSON values."""
        return asdict(self)


def read_header(path: str | Path) -> CheckpointHeader:
    """Reads and checks only the header, without torch: a small read, whatever the file's size.

    Raises CheckpointError if the file is no light checkpoint, is cut off or has a damaged header. It does not read the
    tensor bytes: `verify_file` checks those.
    """
    with _open(path, path) as file:
        header = _read_front(file, path)
    return header


def verify_file(path: str | Path, *, name: str | None = None) -> CheckpointHeader:
    """Checks every byte of the file against the hashes in it, without torch.

    If one differs, it raises CheckpointError, which names the file, the expected hash and the found one. Errors call
    the file ``name`` if it is given: people know the copy of a remote file by another name than its path.
    """
    shown = path if name is None else name
    with _open(path, shown) as file:
        header = _read_front(file, shown)
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    _expect_hash(shown, "tensor bytes", header.tensors_sha256, digest.hexdigest())
    return header


def file_sha256(path: str | Path) -> str:
    """sha256 of the whole file, which the registry keeps for each version."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def front_bytes(header: Mapping[str, Any], index: Mapping[str, Any]) -> bytes:
    """Everything before the tensor bytes, padded so that they begin at a multiple of 8, as safetensors does."""
    try:
        text = json.dumps(header, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as fault:
        raise CheckpointError(f"checkpoint header cannot be written as JSON: {fault}") from fault
    content = json.dumps({"__metadata__": {METADATA_KEY: text}, **index}, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    if len(content) > MAX_HEADER_BYTES:
        raise CheckpointError(f"checkpoint header takes {len(content)} bytes, at most {MAX_HEADER_BYTES} are possible")
    return struct.pack("<Q", len(content)) + content


def _header_faults(header: CheckpointHeader) -> list[str]:
    faults = []
    if type(header.format_version) is not int or header.format_version not in READABLE_VERSIONS:
        faults.append(f"format_version {header.format_version!r}, this version reads {READABLE_VERSIONS}")
    if not isinstance(header.task, str) or not TASK_NAME.fullmatch(header.task):
        faults.append(f"task {header.task!r}, expected a name that matches {TASK_NAME.pattern}")
    if not isinstance(header.class_names, list) or not all(isinstance(name, str) for name in header.class_names):
        faults.append("class_names is not a list of texts")
    if not isinstance(header.kind, str):
        faults.append(f"kind {header.kind!r} is not a text")
    for field in ("measure", "method", "head", "preprocessing", "backbone", "metrics", "provenance"):
        if not isinstance(getattr(header, field), dict):
            faults.append(f"{field} is not a table of names and values")
    for field in ("tensors_sha256", "header_sha256"):
        if not _is_hash(getattr(header, field)):
            faults.append(f"{field} {getattr(header, field)!r}, expected 64 hexadecimal digits")
    if not isinstance(header.code_version, str):
        faults.append(f"code_version {header.code_version!r} is not a text")
    if faults:
        return faults
    for field, needed in (("head", {"kind"}), ("method", {"name"}), ("measure", _MEASURE_FIELDS)):
        if missing := needed - getattr(header, field).keys():
            faults.append(f"{field} lacks {', '.join(sorted(missing))}")
    if unknown := header.measure.keys() - _MEASURE_FIELDS:
        faults.append(f"measure has the unknown fields {', '.join(sorted(unknown))}")
    if header.head.get("num_classes", len(header.class_names)) != len(header.class_names):
        faults.append(f"head has {header.head['num_classes']} classes, class_names {len(header.class_names)}")
    if not isinstance(header.backbone.get("name"), str) or not _is_hash(header.backbone.get("identity")):
        faults.append(f"backbone {header.backbone!r}, expected a name and an identity of 64 hexadecimal digits")
    for name, value in header.metrics.items():
        if not _is_finite(value):
            faults.append(f"metric {name} is {str(value)[:40]}, expected a finite number")
    return faults


def _is_finite(value: object) -> bool:
    """Whether a value is a number that is finite as a float; JSON has integers that are too large for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HEX64.fullmatch(value) is not None


def _read_front(file: BinaryIO, path: str | Path) -> CheckpointHeader:
    """Reads and checks the header; leaves ``file`` at the first tensor byte."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    content_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= content_bytes <= min(size - 8, MAX_HEADER_BYTES):
        kind = "a zip or pickle of torch.save?" if prefix[:2] == b"PK" or prefix[:1] == b"\x80" else f"{size} bytes"
        raise CheckpointError(f"{path}: not a light checkpoint, or cut off ({kind}); expected a safetensors file")
    content = file.read(content_bytes)
    try:
        index = json.loads(content)
        stored = json.loads(index.pop("__metadata__")[METADATA_KEY])
        data_bytes = max((int(entry["data_offsets"][1]) for entry in index.values()), default=0)
        if not 0 <= data_bytes < 2**63:
            raise ValueError("data_offsets beyond the end of any file")
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as fault:
        raise CheckpointError(
            f"{path}: no readable light-checkpoint header ({type(fault).__name__}: {fault}); "
            f"the file is damaged or was not written by hst.checkpoint"
        ) from fault
    header = _header_from(stored, path)
    unsigned = content.replace(header.header_sha256.encode(), UNSIGNED.encode())
    _expect_hash(path, "header", header.header_sha256, hashlib.sha256(prefix + unsigned).hexdigest())
    if size != 8 + content_bytes + data_bytes:
        raise CheckpointError(
            f"{path}: cut off or extended: {size} bytes, expected {8 + content_bytes + data_bytes}; fetch it again"
        )
    return header


def _header_from(stored: object, path: str | Path) -> CheckpointHeader:
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: its header is not a table of names and values")
    if stored.get("format_version") not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{path}: format version {stored.get('format_version')!r}, this version reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; the file is damaged or was written by a newer hst"
        )
    if stored["format_version"] == 1:
        stored = _from_version_1(stored)
    names = {field.name for field in fields(CheckpointHeader)}
    if names != stored.keys():
        missing, unknown = sorted(names - stored.keys()), sorted(stored.keys() - names)
        raise CheckpointError(f"{path}: header fields missing: {missing}, unknown: {unknown}")
    try:
        return CheckpointHeader(**stored)
    except CheckpointError as fault:
        raise CheckpointError(f"{path}: {fault}") from fault


def _from_version_1(stored: dict[str, Any]) -> dict[str, Any]:
    """The fields of a version 1 header under today's names. Later checks find what does not fit."""
    hsn = stored.get("hsn")
    newer = {
        "kind": "classification",
        "measure": {"name": "top1", "unit": "%", "higher_is_better": True},
        "method": {"name": "hst", **hsn} if isinstance(hsn, dict) else hsn,
    }
    return {name: value for name, value in stored.items() if name != "hsn"} | newer


def _expect_hash(path: str | Path, what: str, expected: str, found: str) -> None:
    if expected != found:
        raise CheckpointError(f"{path}: damaged: sha256 of the {what} should be {expected}, is {found}; fetch it again")


def _open(path: str | Path, shown: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as fault:
        raise CheckpointError(f"{shown}: cannot be opened: {fault.strerror}") from fault
