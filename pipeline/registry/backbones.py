"""The frozen ViTs in the registry: each stored once, as one safetensors file named by its identity."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hst.checkpoint_header import file_sha256
from pipeline.console.secrets import shown
from pipeline.registry.placing import PlacedFile, address_in, downloaded, put_in_place
from pipeline.registry.versions import RegistryError
from pipeline.storage import files
from pipeline.tracking.mlflow_client import Patience, experiment_id, open_client, persistently

EXPERIMENT = "hst-backbones"
_IDENTITY_TAG = "hst.backbone_identity"
_SHA256_TAG = "hst.sha256"  # set last: without it the file is not whole


def store_backbone(
    tracking_uri: str,
    backbone_name: str,
    identity: str,
    weights_path: str | Path | None,
    *,
    artifact_root: str | None = None,
    patience: Patience | None = None,
) -> str:
    """Store the ViT that ``load_backbone(backbone_name, weights_path)`` returns, once; returns the id of its run.

    Raises:
        RegistryError: those weights do not have this identity.
        MlflowAwayError: MLflow did not answer for as long as ``patience`` allows.
    """
    client = open_client(tracking_uri)

    def stored_run() -> str:
        experiment = experiment_id(client, EXPERIMENT, artifact_root=artifact_root)
        found = _find(client, identity)
        return (
            found.info.run_id
            if found is not None
            else _store(client, experiment, backbone_name, identity, weights_path)
        )

    return persistently(stored_run, tracking_uri=tracking_uri, patience=patience)


def fetch_backbone(tracking_uri: str, identity: str, dest_dir: str | Path) -> PlacedFile:
    """Fetch the ViT of ``identity`` to ``dest_dir``, whole and checked; a sound file that lies there is kept.

    ``dest_dir`` is a local folder or an s3:// prefix. The file is ``backbone-<first 12 digits>.safetensors``;
    ``hst.backbone.load_backbone`` reads it.

    Raises:
        RegistryError: the registry has no such ViT, or its file is damaged.
        StorageError, FileNotFoundError: nothing can be written to ``dest_dir``.
    """
    client = open_client(tracking_uri, create=False)
    run = _find(client, identity)
    if run is None:
        raise RegistryError(f"the registry {shown(tracking_uri)} holds no backbone of identity {identity}")
    expected = run.data.tags[_SHA256_TAG]
    destination = address_in(dest_dir, f"backbone-{identity[:12]}.safetensors")
    with contextlib.suppress(FileNotFoundError):
        if files.content_sha256(destination) == expected:
            return PlacedFile(uri=destination, size_bytes=files.size(destination))
    with downloaded(tracking_uri, run.info.run_id, f"{identity}.safetensors", destination) as file:
        if (found := file_sha256(file)) != expected:
            raise RegistryError(f"backbone {identity}: damaged: sha256 should be {expected}, is {found}")
        _expect_identity(run.data.tags["hst.backbone_name"], file, identity)
        return put_in_place(file, destination)


def _find(client: Any, identity: str) -> Any:
    """The run that holds the whole file, the oldest if several do; None if none does."""
    if len(identity) != 64 or not set(identity) <= set("0123456789abcdef"):
        raise RegistryError(f"backbone identity {identity!r}: expected 64 hexadecimal digits")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    runs = client.search_runs(
        [experiment.experiment_id],
        filter_string=f"tags.`{_IDENTITY_TAG}` = '{identity}' and tags.`{_SHA256_TAG}` LIKE '%'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


def _store(client: Any, experiment: str, name: str, identity: str, weights_path: str | Path | None) -> str:
    tags = {_IDENTITY_TAG: identity, "hst.backbone_name": name}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{identity}.safetensors"
        _write(file, name, identity, weights_path)
        run_id: str = client.create_run(experiment, tags=tags, run_name=f"{name} {identity[:12]}").info.run_id
        client.log_artifact(run_id, str(file))
        client.set_tag(run_id, _SHA256_TAG, file_sha256(file))
    client.set_terminated(run_id)
    return run_id


def _write(file: Path, name: str, identity: str, weights_path: str | Path | None) -> None:
    """Write the weights as one safetensors file, in half precision if that loses nothing: many are shipped so."""
    import safetensors.torch
    import torch

    from hst.backbone import load_backbone

    backbone = load_backbone(name, weights_path)
    if backbone.identity != identity:
        raise RegistryError(
            f"backbone {name} of {shown(str(weights_path))}: identity should be {identity}, is {backbone.identity}"
        )
    arrays = {key: torch.from_numpy(value) for key, value in backbone.arrays().items()}
    halves = {key: value.half() for key, value in arrays.items()}
    lossless = all(torch.equal(halves[key].float(), value) for key, value in arrays.items())
    safetensors.torch.save_file(halves if lossless else arrays, file)
    _expect_identity(name, file, identity)


def _expect_identity(name: str, file: Path, identity: str) -> None:
    from hst.backbone import load_backbone

    found = load_backbone(name, file).identity
    if found != identity:
        raise RegistryError(f"backbone {name}: its file has identity {found}, expected {identity}")
