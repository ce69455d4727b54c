"""Files out of the registry, checked before anybody sees them: pull a light checkpoint, verify one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hst.checkpoint_header import CheckpointError, CheckpointHeader, file_sha256, verify_file
from pipeline.mlflow_client import is_reachable, open_client
from pipeline.registry_versions import RegisteredVersion, RegistryError, get_version, list_tasks


def pull(
    tracking_uri: str,
    task: str,
    version: int | None = None,
    dest_dir: str | Path = ".",
    with_backbone: bool = False,
    *,
    prefix: str = "",
) -> Path:
    """Fetch a version (default: the champion) to ``dest_dir/<task>.safetensors``, and if asked its frozen ViT.

    The file is put in place whole, after its hashes, its task and its backbone have been checked against the version;
    otherwise nothing is changed. Raises RegistryError or CheckpointError.
    """
    chosen = get_version(tracking_uri, task, version, prefix=prefix)
    destination = Path(dest_dir) / f"{task}.safetensors"
    with downloaded(tracking_uri, chosen.run_id, _artifact_path(chosen), destination.parent) as file:
        _check_pulled(file, chosen, task)
        if with_backbone:
            from pipeline.backbone_store import fetch_backbone

            fetch_backbone(tracking_uri, chosen.tags["backbone_identity"], destination.parent)
        os.replace(file, destination)
    return destination


def verify_version(tracking_uri: str, task: str, version: int | None = None, *, prefix: str = "") -> RegisteredVersion:
    """Fetch a version (default: the champion) to a temporary folder, check it as `pull` does, and drop it."""
    chosen = get_version(tracking_uri, task, version, prefix=prefix)
    with downloaded(tracking_uri, chosen.run_id, _artifact_path(chosen), None) as file:
        _check_pulled(file, chosen, task)
    return chosen


def verify_local(
    path: str | Path, tracking_uri: str | None = None, *, prefix: str = ""
) -> tuple[CheckpointHeader, str | None]:
    """Check a file against the hashes it carries and, where the registry is reachable, against the task's versions.

    Returns the header and what the registry says of the file; None where it was not asked or cannot be reached. Raises
    CheckpointError for a damaged file, RegistryError where the registry has the task but never had this file.
    """
    header = verify_file(path)
    if tracking_uri is None or not is_reachable(tracking_uri):
        return header, None
    versions = list_tasks(tracking_uri, prefix=prefix).get(header.task)
    if versions is None:
        return header, f"the registry has no task {header.task}"
    sha256 = file_sha256(path)
    for found in versions:
        if found.sha256 == sha256:
            return header, f"is version {found.version} of {found.name}"
    known = ", ".join(f"{found.version}: {found.sha256}" for found in versions[:5])
    raise RegistryError(
        f"{path}: sound in itself, but no version of {prefix + header.task} has its sha256 {sha256} (versions {known})"
    )


@contextlib.contextmanager
def downloaded(tracking_uri: str, run_id: str, artifact_path: str, beside: Path | None) -> Iterator[Path]:
    """An artifact in a temporary folder, on the file system of ``beside`` if given, removed when the block ends."""
    client = open_client(tracking_uri, create=False)
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hst-pull-", dir=beside) as folder:
        from mlflow.exceptions import MlflowException

        try:
            file = Path(client.download_artifacts(run_id, artifact_path, folder))
        except (MlflowException, OSError) as fault:
            reason = str(fault).splitlines()[0]
            raise RegistryError(f"artifact {artifact_path} of run {run_id} cannot be fetched: {reason}") from fault
        if not file.is_file() or not file.resolve().is_relative_to(Path(folder).resolve()):
            raise RegistryError(f"artifact {artifact_path} of run {run_id} is not a file")
        with open(file, "rb+") as written:
            os.fsync(written.fileno())
        yield file


def _artifact_path(chosen: RegisteredVersion) -> str:
    path = chosen.tags.get("file", "")
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise RegistryError(f"version {chosen.version} of {chosen.name} names no artifact of its run: {path!r}")
    return path


def _check_pulled(file: Path, chosen: RegisteredVersion, task: str) -> None:
    what = f"version {chosen.version} of {chosen.name}"
    found = file_sha256(file)
    if found != chosen.sha256:
        raise RegistryError(f"{what}: what the registry holds is damaged: sha256 should be {chosen.sha256}, is {found}")
    try:
        header = verify_file(file)
    except CheckpointError as fault:
        raise RegistryError(f"{what}: {fault}") from fault
    facts: list[tuple[str, Any, Any]] = [
        ("task", task, header.task),
        ("backbone identity", chosen.tags.get("backbone_identity"), header.backbone["identity"]),
    ]
    for label, expected, came in facts:
        if expected != came:
            raise RegistryError(f"{what}: {label} should be {expected}, the file's header says {came}")
