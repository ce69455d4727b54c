"""The registry of light checkpoints: MLflow's model registry, one registered model a task, one version a checkpoint.

A version's file is an artifact of the run that made it, under a path that holds its sha256, so that no later file takes
its place. The version's tags hold what a person needs to choose between versions. The alias ``champion`` marks the
version in use; ``champion-<first 12 digits of an identity>`` marks the best one of a backbone.

`pipeline.registry.champion` decides which version takes an alias, `pipeline.registry.files` takes files out again, and
`pipeline.registry.backbones` keeps the frozen ViTs.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hst.checkpoint_header import TASK_NAME, CheckpointHeader, file_sha256, verify_file
from pipeline.console.secrets import shown
from pipeline.registry.champion import CHAMPION, is_ours
from pipeline.registry.settling import REASON_TAG, pages, promote_by_hand, settle
from pipeline.registry.version_tags import TASK_TAG, Facts, version_tags
from pipeline.tracking.mlflow_client import Patience, TrackingError, is_missing, open_client, persistently

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RegistryError(TrackingError):
    """The registry has no such thing, or must not do what was asked."""


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """One version of a task's light checkpoint."""

    name: str
    """Registered model: prefix + task."""
    task: str
    """Name of the task."""
    version: int
    """Number of the version, from 1."""
    sha256: str
    """sha256 of the whole checkpoint file."""
    aliases: list[str]
    """Aliases that point to it now."""
    reason: str
    """Why it did or did not take the champion alias."""
    run_id: str
    """The run whose artifact it is."""
    tags: dict[str, str]
    """All that is recorded: backbone, data, image size, protocol, kind, metric, results, size in bytes, ..."""
    created_ms: int
    """When it was registered, Unix time in milliseconds."""

    @property
    def is_champion(self) -> bool:
        return CHAMPION in self.aliases

    @functools.cached_property
    def facts(self) -> Facts:
        """What its tags say."""
        return Facts.of(self.tags)


def register(
    tracking_uri: str,
    checkpoint_path: str | Path,
    *,
    run_id: str,
    prefix: str = "",
    patience: Patience | None = None,
    check: Callable[[], None] = lambda: None,
) -> RegisteredVersion:
    """Store a light checkpoint as an artifact of its run and as a version of its task.

    Safe to repeat: the same file of the same run is the same version. A new version takes the champion alias by itself
    only if there is no champion, or if the champion has the same backbone, data, image size, protocol and metric, and
    the new ``val`` is strictly better. Several processes may register at once (`pipeline.registry.settling`).

    ``check`` is called before every write, and raises where this process must not write any more.

    Raises CheckpointError where the file is not sound, MlflowAwayError when patience is over.
    """
    header = verify_file(checkpoint_path)
    client = open_client(tracking_uri)
    return persistently(
        lambda: _register_once(client, Path(checkpoint_path), header, run_id, prefix, check),
        tracking_uri=tracking_uri,
        patience=patience,
    )


def list_tasks(tracking_uri: str, *, prefix: str = "") -> dict[str, list[RegisteredVersion]]:
    """All versions of all tasks under ``prefix``, newest first; tasks by name."""
    client = open_client(tracking_uri, create=False)
    found: dict[str, list[RegisteredVersion]] = {}
    for model in pages(client.search_registered_models):
        task = model.tags.get(TASK_TAG)
        if task is not None and model.name == prefix + task:
            found[task] = _versions(client, model.name)
    return dict(sorted(found.items()))


def list_versions(tracking_uri: str, task: str, *, prefix: str = "") -> list[RegisteredVersion]:
    """All versions of a task, newest first. Raises RegistryError where it has none."""
    client = open_client(tracking_uri, create=False)
    name = registered_name(task, prefix)
    versions = _versions(client, name)
    if not versions:
        close = difflib.get_close_matches(task, list_tasks(tracking_uri, prefix=prefix))
        hint = f"did you mean {' or '.join(close)}?" if close else "`hst-registry list` shows all"
        raise RegistryError(f"{name}: no such task in the registry {shown(tracking_uri)}; {hint}")
    return versions


def get_version(tracking_uri: str, task: str, version: int | None = None, *, prefix: str = "") -> RegisteredVersion:
    """A task's version by number, or its champion."""
    versions = list_versions(tracking_uri, task, prefix=prefix)
    for found in versions:
        if found.is_champion if version is None else found.version == version:
            return found
    have = ", ".join(str(found.version) for found in reversed(versions))
    name = registered_name(task, prefix)
    if version is None:
        raise RegistryError(
            f"{name}: no version is champion (there are: {have}); name one with --version, "
            f"or make one champion with `hst-registry promote {task} VERSION`"
        )
    raise RegistryError(f"{name}: no version {version}; there are: {have}")


def promote(tracking_uri: str, task: str, version: int, *, prefix: str = "") -> RegisteredVersion:
    """Move the champion alias, and that of the version's backbone, to ``version``, by hand."""
    chosen = get_version(tracking_uri, task, version, prefix=prefix)
    client = open_client(tracking_uri, create=False)
    promote_by_hand(client, chosen.name, version)
    return get_version(tracking_uri, task, version, prefix=prefix)


def registered_name(task: str, prefix: str = "") -> str:
    """The registered model's name. Raises RegistryError for names that could leave a folder or that MLflow refuses."""
    if not TASK_NAME.fullmatch(task):
        raise RegistryError(f"task {task!r}: expected a name that matches {TASK_NAME.pattern}")
    if prefix and not _NAME.fullmatch(prefix):
        raise RegistryError(f"registry prefix {prefix!r}: expected a name that matches {_NAME.pattern}")
    return prefix + task


def _register_once(
    client: Any, path: Path, header: CheckpointHeader, run_id: str, prefix: str, check: Callable[[], None]
) -> RegisteredVersion:
    from mlflow.exceptions import MlflowException

    name = registered_name(header.task, prefix)
    sha256 = file_sha256(path)
    check()
    try:
        client.create_registered_model(name, tags={TASK_TAG: header.task})
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = [v for v in _versions(client, name) if (v.sha256, v.run_id) == (sha256, run_id)]
    if found:
        version, tags = found[0].version, found[0].tags
    else:
        folder = f"checkpoint/{sha256[:12]}"
        _upload(client, run_id, path, folder, f"{header.task}.safetensors")
        tags = version_tags(header, sha256, path.stat().st_size, folder)
        source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{folder}"
        check()
        created = client.create_model_version(name, source, run_id=run_id, tags=tags, await_creation_for=0)
        version = int(created.version)
    if REASON_TAG not in tags:
        settle(client, name, version, check)
    return _one_version(client, name, version)


def _upload(client: Any, run_id: str, path: Path, folder: str, file_name: str) -> None:
    import tempfile

    if path.name == file_name:
        client.log_artifact(run_id, str(path), folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        renamed = Path(temporary) / file_name
        renamed.symlink_to(path.resolve())
        client.log_artifact(run_id, str(renamed), folder)


def _versions(client: Any, name: str) -> list[RegisteredVersion]:
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as fault:
        if is_missing(fault):
            return []
        raise
    entries = pages(client.search_model_versions, filter_string=f"name = '{name}'")
    versions = [_from_entry(entry, model.aliases) for entry in entries if is_ours(entry.tags)]
    return sorted(versions, key=lambda found: -found.version)


def _one_version(client: Any, name: str, version: int) -> RegisteredVersion:
    return _from_entry(client.get_model_version(name, str(version)), client.get_registered_model(name).aliases)


def _from_entry(entry: Any, aliases: Mapping[str, Any]) -> RegisteredVersion:
    return RegisteredVersion(
        name=entry.name,
        task=entry.tags.get(TASK_TAG, entry.name),
        version=int(entry.version),
        sha256=entry.tags["sha256"],
        aliases=sorted(alias for alias, number in aliases.items() if int(number) == int(entry.version)),
        reason=entry.tags.get(REASON_TAG, "registration was interrupted"),
        run_id=entry.run_id,
        tags=dict(entry.tags),
        created_ms=int(entry.creation_timestamp),
    )
