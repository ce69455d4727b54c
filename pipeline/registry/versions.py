"""The registry of light checkpoints: MLflow's model registry, one registered model a task, one version a checkpoint.

A version's file is an artifact of the run that made it, under a path that holds its sha256, so that nothing later takes
its place. What a person needs to choose between versions is in the version's tags. The alias ``champion`` is at the one
in use; ``champion-<first 12 digits of an identity>`` is the same among the versions of one backbone.

Taking files out again is in `pipeline.registry.files`, the frozen ViTs are in `pipeline.registry.backbones`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hst.checkpoint_header import TASK_NAME, CheckpointHeader, file_sha256, verify_file
from pipeline.tracking.mlflow_client import Patience, TrackingError, is_missing, open_client, persistently

CHAMPION = "champion"
COMPARABLE = {
    "backbone_identity": "backbone",
    "data_manifest_sha256": "data",
    "image_size": "image size",
    "protocol": "protocol",
}
"""Tags that must equal the champion's before results may be compared, and what people call them."""
_TASK_TAG = "hst.task"
_REASON_TAG = "champion_reason"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RegistryError(TrackingError):
    """The registry does not have what was asked for, or must not do it."""


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
    """All that is recorded of it: backbone, data, image size, protocol, results, size in bytes, ..."""
    created_ms: int
    """When it was registered, Unix time in milliseconds."""

    @property
    def is_champion(self) -> bool:
        return CHAMPION in self.aliases

    def metric(self, name: str) -> float | None:
        """Tag ``name`` as a number in [0, 1], None where the version has none."""
        return float(self.tags[name]) if name in self.tags else None


def register(
    tracking_uri: str,
    checkpoint_path: str | Path,
    *,
    run_id: str,
    prefix: str = "",
    patience: Patience | None = None,
) -> RegisteredVersion:
    """Store a light checkpoint as an artifact of its run and as a version of its task.

    Safe to repeat: the same file of the same run is the same version. A new version takes the champion alias by itself
    only where there is none, or from a champion with the same backbone, data, image size and protocol whose ``val``
    it at least reaches.

    Raises CheckpointError where the file is not sound, MlflowAwayError when patience is over.
    """
    header = verify_file(checkpoint_path)
    client = open_client(tracking_uri)
    return persistently(
        lambda: _register_once(client, Path(checkpoint_path), header, run_id, prefix),
        tracking_uri=tracking_uri,
        patience=patience,
    )


def list_tasks(tracking_uri: str, *, prefix: str = "") -> dict[str, list[RegisteredVersion]]:
    """All versions of all tasks under ``prefix``, newest first; tasks by name."""
    client = open_client(tracking_uri, create=False)
    found: dict[str, list[RegisteredVersion]] = {}
    for model in _pages(client.search_registered_models):
        task = model.tags.get(_TASK_TAG)
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
        raise RegistryError(f"{name}: no such task in the registry {tracking_uri}; {hint}")
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
    client.set_model_version_tag(chosen.name, str(version), _REASON_TAG, "promoted by hand")
    client.set_registered_model_alias(chosen.name, backbone_alias(chosen.tags), str(version))
    client.set_registered_model_alias(chosen.name, CHAMPION, str(version))
    return get_version(tracking_uri, task, version, prefix=prefix)


def registered_name(task: str, prefix: str = "") -> str:
    """The registered model's name. Raises RegistryError for names that could leave a folder or that MLflow refuses."""
    if not TASK_NAME.fullmatch(task):
        raise RegistryError(f"task {task!r}: expected a name that matches {TASK_NAME.pattern}")
    if prefix and not _NAME.fullmatch(prefix):
        raise RegistryError(f"registry prefix {prefix!r}: expected a name that matches {_NAME.pattern}")
    return prefix + task


def backbone_alias(tags: Mapping[str, str]) -> str:
    """The champion alias among the versions of the same backbone."""
    return f"{CHAMPION}-{tags['backbone_identity'][:12]}"


def decide(new: Mapping[str, str], holder: RegisteredVersion | None) -> tuple[bool, str]:
    """Whether a version with tags ``new`` takes an alias from ``holder`` by itself, and why."""
    if "val_top1" not in new:
        return False, "no val result: never promoted by itself"
    unknown = [label for tag, label in COMPARABLE.items() if tag not in new]
    if unknown:
        return False, f"no {', '.join(unknown)} recorded: never promoted by itself"
    if holder is None:
        return True, "first with a val result"
    different = [label for tag, label in COMPARABLE.items() if holder.tags.get(tag) != new[tag]]
    if different:
        return False, f"not comparable with version {holder.version}: other {', '.join(different)}"
    before = holder.metric("val_top1")
    if before is None:
        return False, f"version {holder.version} has no val result to compare with"
    val = float(new["val_top1"])
    relation = "at least as good as" if val >= before else "below"
    return val >= before, f"val {val:.2%} is {relation} {before:.2%} of version {holder.version}"


def _register_once(client: Any, path: Path, header: CheckpointHeader, run_id: str, prefix: str) -> RegisteredVersion:
    from mlflow.exceptions import MlflowException

    name = registered_name(header.task, prefix)
    sha256 = file_sha256(path)
    try:
        client.create_registered_model(name, tags={_TASK_TAG: header.task})
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = [v for v in _versions(client, name) if (v.sha256, v.run_id) == (sha256, run_id)]
    if found:
        version, tags = found[0].version, found[0].tags
    else:
        folder = f"checkpoint/{sha256[:12]}"
        _upload(client, run_id, path, folder, f"{header.task}.safetensors")
        tags = _version_tags(header, sha256, path.stat().st_size, folder)
        source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{folder}"
        created = client.create_model_version(name, source, run_id=run_id, tags=tags, await_creation_for=0)
        version = int(created.version)
    if _REASON_TAG not in tags:
        _settle_aliases(client, name, version, tags)
    return _one_version(client, name, version)


def _settle_aliases(client: Any, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Take the aliases that are the version's to take; the reason comes last and marks it as settled."""
    own = backbone_alias(tags)
    takes_own, _ = decide(tags, _holder(client, name, own, version))
    takes_champion, reason = decide(tags, _holder(client, name, CHAMPION, version))
    if takes_own:
        client.set_registered_model_alias(name, own, str(version))
    if takes_champion:
        client.set_registered_model_alias(name, CHAMPION, str(version))
    client.set_model_version_tag(name, str(version), _REASON_TAG, reason)


def _holder(client: Any, name: str, alias: str, new: int) -> RegisteredVersion | None:
    """The version that has the alias; ``new`` itself, left so by an interrupted attempt, does not count."""
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None or int(number) == new else _one_version(client, name, int(number))


def _version_tags(header: CheckpointHeader, sha256: str, size_bytes: int, folder: str) -> dict[str, str]:
    tags: dict[str, Any] = {
        _TASK_TAG: header.task,
        "sha256": sha256,
        "bytes": size_bytes,
        "file": f"{folder}/{header.task}.safetensors",
        "backbone_identity": header.backbone["identity"],
        "backbone_name": header.backbone["name"],
        "image_size": header.preprocessing.get("image_size"),
        "code_version": header.code_version,
        **{name: header.provenance.get(name) for name in ("data_manifest_sha256", "protocol", "seed")},
        **{name.replace("/", "_"): value for name, value in header.metrics.items()},
    }
    return {name: _as_text(value) for name, value in tags.items() if value is not None}


def _as_text(value: object) -> str:
    """Texts as they are, anything else as JSON whose equality is the value's."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


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
    entries = _pages(client.search_model_versions, filter_string=f"name = '{name}'")
    versions = [_from_entry(entry, model.aliases) for entry in entries if "sha256" in entry.tags]
    return sorted(versions, key=lambda found: -found.version)


def _one_version(client: Any, name: str, version: int) -> RegisteredVersion:
    return _from_entry(client.get_model_version(name, str(version)), client.get_registered_model(name).aliases)


def _from_entry(entry: Any, aliases: Mapping[str, Any]) -> RegisteredVersion:
    return RegisteredVersion(
        name=entry.name,
        task=entry.tags.get(_TASK_TAG, entry.name),
        version=int(entry.version),
        sha256=entry.tags["sha256"],
        aliases=sorted(alias for alias, number in aliases.items() if int(number) == int(entry.version)),
        reason=entry.tags.get(_REASON_TAG, "registration was interrupted"),
        run_id=entry.run_id,
        tags=dict(entry.tags),
        created_ms=int(entry.creation_timestamp),
    )


def _pages(search: Any, **arguments: Any) -> list[Any]:
    """Everything that a paged search of MlflowClient finds."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found
