"""Takes files out of the registry and checks them first: pull a light checkpoint, or verify one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hst.checkpoint_header import CheckpointError, CheckpointHeader, file_sha256, verify_file
from pipeline.console.secrets import shown
from pipeline.registry.backbones import fetch_backbone
from pipeline.registry.placing import PlacedFile, address_in, downloaded, put_in_place
from pipeline.registry.versions import RegisteredVersion, RegistryError, get_version, list_tasks
from pipeline.storage import files
from pipeline.tracking.mlflow_client import is_reachable


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What `pull` put in place."""

    checkpoint: PlacedFile
    """``<task>.safetensors``."""
    header: CheckpointHeader
    """What the checkpoint says about itself."""
    backbone: PlacedFile | None
    """The frozen ViT, if it was asked for."""


@dataclass(frozen=True, kw_only=True)
class VerifiedFile:
    """A checkpoint whose every byte agrees with the hashes that it carries."""

    header: CheckpointHeader
    """What the checkpoint says about itself."""
    sha256: str
    """sha256 of the whole file."""
    known: str | None
    """What the registry knows about it; None if it was not asked or cannot be reached."""


def pull(
    tracking_uri: str,
    task: str,
    version: int | None = None,
    dest_dir: str | Path = ".",
    with_backbone: bool = False,
    *,
    prefix: str = "",
) -> Pulled:
    """Fetch a version (default: the champion) to ``dest_dir/<task>.safetensors``, and if asked its frozen ViT.

    ``dest_dir`` is a local folder or an s3:// prefix. The file is put in place whole, after its hashes, its task and
    its backbone have been checked against the version, and replaces one that is there; otherwise nothing is changed.
    Raises RegistryError or CheckpointError; StorageError or FileNotFoundError where nothing can be put there.
    """
    chosen = get_version(tracking_uri, task, version, prefix=prefix)
    destination = address_in(dest_dir, f"{task}.safetensors")
    backbone = None
    with downloaded(tracking_uri, chosen.run_id, _artifact_path(chosen), destination) as file:
        header = _check_pulled(file, chosen, task)
        if with_backbone:
            backbone = fetch_backbone(tracking_uri, header.backbone["identity"], dest_dir)
        checkpoint = put_in_place(file, destination)
    return Pulled(checkpoint=checkpoint, header=header, backbone=backbone)


def verify_version(tracking_uri: str, task: str, version: int | None = None, *, prefix: str = "") -> RegisteredVersion:
    """Fetch a version (default: the champion) to a temporary folder, check it as `pull` does, and drop it."""
    chosen = get_version(tracking_uri, task, version, prefix=prefix)
    with downloaded(tracking_uri, chosen.run_id, _artifact_path(chosen), None) as file:
        _check_pulled(file, chosen, task)
    return chosen


def verify_checkpoint(uri: str | Path, tracking_uri: str | None = None, *, prefix: str = "") -> VerifiedFile:
    """Check a file against the hashes it carries and, where the registry is reachable, against the task's versions.

    ``uri`` is a local path, or an address that `storage` reads. Raises CheckpointError for a damaged file,
    RegistryError where the registry has the task but never had this file, StorageError or FileNotFoundError where a
    remote one cannot be read.
    """
    address = str(uri)
    name = shown(address)
    remote = files.is_remote(address)
    with files.hold(address) if remote else contextlib.nullcontext(files.absolute(address)) as path:
        header, sha256 = verify_file(path, name=name), file_sha256(path)
    known = None
    if tracking_uri is not None and is_reachable(tracking_uri):
        known = _what_is_known(name, header.task, sha256, tracking_uri, prefix)
    return VerifiedFile(header=header, sha256=sha256, known=known)


def _what_is_known(name: str, task: str, sha256: str, tracking_uri: str, prefix: str) -> str:
    versions = list_tasks(tracking_uri, prefix=prefix).get(task)
    if versions is None:
        return f"the registry has no task {task}"
    for found in versions:
        if found.sha256 == sha256:
            return f"is version {found.version} of {found.name}"
    known = ", ".join(f"{found.version}: {found.sha256}" for found in versions[:5])
    raise RegistryError(
        f"{name}: sound in itself, but no version of {prefix + task} has its sha256 {sha256} (versions {known})"
    )


def _artifact_path(chosen: RegisteredVersion) -> str:
    path = chosen.tags.get("file", "")
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise RegistryError(f"version {chosen.version} of {chosen.name} names no artifact of its run: {path!r}")
    return path


def _check_pulled(file: Path, chosen: RegisteredVersion, task: str) -> CheckpointHeader:
    what = f"version {chosen.version} of {chosen.name}"
    found = file_sha256(file)
    if found != chosen.sha256:
        raise RegistryError(f"{what}: what the registry holds is damaged: sha256 should be {chosen.sha256}, is {found}")
    try:
        header = verify_file(file)
    except CheckpointError as fault:
        raise RegistryError(f"{what}: {fault}") from fault
    identity = header.backbone["identity"]
    facts: list[tuple[str, Any, Any]] = [
        ("task", task, header.task),
        # A broken tag says nothing: the sha256 has proved the file.
        ("backbone identity", chosen.facts.backbone_identity or identity, identity),
    ]
    for label, expected, came in facts:
        if expected != came:
            raise RegistryError(f"{what}: {label} should be {expected}, the file's header says {came}")
    return header
