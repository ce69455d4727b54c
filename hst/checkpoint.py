"""The light checkpoint: everything a task owns, nothing of the frozen ViT, in one safetensors file.

The file holds every parameter and buffer of the task, and the header of `hst.checkpoint_header`. A save writes the
whole file or nothing, and loading is strict. Pickle is never used. Only the functions that handle tensors import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hst.checkpoint_header import (
    FORMAT_VERSION,
    TASK_NAME,
    UNSIGNED,
    CheckpointError,
    CheckpointHeader,
    file_sha256,
    front_bytes,
    read_header,
    verify_file,
)

if TYPE_CHECKING:
    import torch

    from hst.backbone import Backbone
    from hst.model import TaskModel

__all__ = [
    "FORMAT_VERSION",
    "TASK_NAME",
    "CheckpointError",
    "CheckpointHeader",
    "file_sha256",
    "load_task_model",
    "read_header",
    "save_checkpoint",
    "verify_file",
]


def save_checkpoint(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    task: str,
    kind: str,
    measure: dict[str, Any],
    class_names: list[str],
    method: dict[str, Any],
    head: dict[str, Any],
    preprocessing: dict[str, Any],
    backbone: dict[str, Any],
    metrics: dict[str, float],
    code_version: str,
    provenance: dict[str, Any],
) -> CheckpointHeader:
    """Writes ``tensors`` (a TaskModel's state_dict) and the header to ``path``; a failed save leaves no file.

    The same content gives the same bytes. Raises CheckpointError if the header is invalid or cannot be written as JSON.
    """
    import safetensors.torch

    packed = safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    (index_bytes,) = struct.unpack("<Q", packed[:8])
    index: dict[str, Any] = json.loads(packed[8 : 8 + index_bytes])
    data = memoryview(packed)[8 + index_bytes :]
    unsigned = CheckpointHeader(
        format_version=FORMAT_VERSION,
        task=task,
        kind=kind,
        measure=measure,
        class_names=list(class_names),
        method=method,
        head=head,
        preprocessing=preprocessing,
        backbone=backbone,
        metrics=metrics,
        code_version=code_version,
        provenance=provenance,
        tensors_sha256=hashlib.sha256(data).hexdigest(),
        header_sha256=UNSIGNED,
    )
    unsigned_front = front_bytes(unsigned.to_dict(), index)
    signature = hashlib.sha256(unsigned_front).hexdigest()
    front = front_bytes(unsigned.to_dict() | {"header_sha256": signature}, index)
    with _replacing(Path(path)) as file:
        file.write(front)
        file.write(data)
    return read_header(path)  # as a reader will see it: tuples have become lists


def load_task_model(path: str | Path, backbone: Backbone) -> tuple[TaskModel, CheckpointHeader]:
    """Builds the task's model on ``backbone``, loads the checkpoint into it and returns it in eval mode.

    Loading is strict: the backbone must have the header's identity, and names, shapes and dtypes must be exactly the
    model's. Otherwise it raises CheckpointError, which lists what was expected and what was found.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    from hst.model import build_task_model

    header = verify_file(path)
    if header.backbone["identity"] != backbone.identity:
        raise CheckpointError(
            f"{path}: trained on backbone {header.backbone['name']} with identity "
            f"{header.backbone['identity']}, but came with {backbone.name} of identity {backbone.identity}; "
            f"load the weights it was trained on"
        )
    try:
        model = build_task_model(backbone, header.method, header.head, task=header.task)
    except (TypeError, ValueError, KeyError) as fault:
        raise CheckpointError(f"{path}: its header describes no model that this version can build: {fault}") from fault
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as fault:
        raise CheckpointError(f"{path}: not a valid safetensors file: {fault}") from fault
    faults = _tensor_faults(model.state_dict(), tensors)
    if faults:
        raise CheckpointError(f"{path}: tensors do not fit the model that its header describes: " + "; ".join(faults))
    model.load_state_dict(tensors, strict=True)
    return model.eval(), header


def _tensor_faults(expected: Mapping[str, torch.Tensor], came: Mapping[str, torch.Tensor]) -> list[str]:
    faults = []
    if missing := sorted(expected.keys() - came.keys()):
        faults.append(f"missing {_some(missing)}")
    if unknown := sorted(came.keys() - expected.keys()):
        faults.append(f"not expected {_some(unknown)}")
    for name in sorted(expected.keys() & came.keys()):
        want, got = expected[name], came[name]
        if want.shape != got.shape or want.dtype != got.dtype:
            faults.append(f"{name} should be {want.dtype} {tuple(want.shape)}, is {got.dtype} {tuple(got.shape)}")
    return faults


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces ``path`` if the block succeeds, and leaves no trace otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
