"""What pull promises, of a local folder and of a prefix on a real S3 server alike."""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hst.backbone import load_backbone
from hst.checkpoint import CheckpointError, save_checkpoint
from pipeline.registry.backbones import fetch_backbone, store_backbone
from pipeline.registry.files import pull, verify_checkpoint
from pipeline.registry.versions import RegistryError, register
from pipeline.storage import files, s3
from pipeline.storage.files import StorageError
from pipeline.tracking.mlflow_client import experiment_id, open_client
from tests.hst.small_models import CLASSIFICATION
from tests.pipeline.range_server import RangeServer

BACKBONE = "hst_vit_micro_patch8_64"
NAME = "vtab-dtd.safetensors"


@pytest.fixture(scope="module")
def identity() -> str:
    return load_backbone(BACKBONE, "random").identity


@pytest.fixture(scope="module")
def registry_folder(tmp_path_factory: pytest.TempPathFactory, identity: str) -> Path:
    """A registry of two versions of vtab-dtd, in files; version 2, the champion, is uploaded in parts."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = open_client(uri)
    run_id = client.create_run(experiment_id(client, "test", artifact_root=f"{folder}/artifacts")).info.run_id
    for number, length in ((1, 30), (2, 3_000_000)):
        path = folder / f"{number}.safetensors"
        save_checkpoint(
            path,
            {"weight": torch.full((length,), float(number))},
            task="vtab-dtd",
            class_names=["a", "b"],
            method={"name": "hst"},
            **CLASSIFICATION,
            head={"kind": "classification", "input": "side", "num_classes": 2},
            preprocessing={"image_size": 112},
            backbone={"name": BACKBONE, "identity": identity},
            metrics={"val/top1": number / 10},
            code_version="0.1.0",
            provenance={"seed": 0, "protocol": "selection+final", "data_manifest_sha256": {"train": "1"}},
        )
        register(uri, path, run_id=run_id)
    store_backbone(uri, BACKBONE, identity, "random", artifact_root=f"{folder}/artifacts")
    return folder


@pytest.fixture
def uri(registry_folder: Path) -> str:
    return f"sqlite:///{registry_folder}/mlflow.db"


@pytest.fixture(params=["local", "s3"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "deep/here")
    else:
        request.getfixturevalue("s3_folder")
        yield "s3://bucket/deep/here"


def trained(registry_folder: Path, version: int) -> bytes:
    return (registry_folder / f"{version}.safetensors").read_bytes()


def artifact(registry_folder: Path, content: bytes) -> Path:
    """The file of the registry's that holds it."""
    (found,) = (path for path in (registry_folder / "artifacts").rglob("*.safetensors") if path.read_bytes() == content)
    return found


def test_pulled_equals_trained_and_replaces_what_was_there(uri: str, registry_folder: Path, dest: str) -> None:
    for version in (1, 2):
        pulled = pull(uri, "vtab-dtd", version, dest)
        assert pulled.checkpoint.uri == f"{dest}/{NAME}"
        assert pulled.checkpoint.size_bytes == len(trained(registry_folder, version))
        assert pulled.header.metrics == {"val/top1": version / 10}
        assert pulled.backbone is None
        assert files.read_bytes(pulled.checkpoint.uri) == trained(registry_folder, version)
        assert files.list_prefix(dest) == [NAME]


@pytest.mark.parametrize("before", [b"what was there", None])
def test_a_damaged_version_changes_nothing(
    uri: str, registry_folder: Path, dest: str, before: bytes | None, tmp_path: Path
) -> None:
    if before is not None:
        files.write_bytes(f"{dest}/{NAME}", before)
    sound = trained(registry_folder, 1)
    stored = artifact(registry_folder, sound)
    damaged = sound[:-1] + bytes([sound[-1] ^ 1])
    stored.write_bytes(damaged)
    try:
        with pytest.raises(RegistryError, match=f"should be {sha256(sound)}, is {sha256(damaged)}"):
            pull(uri, "vtab-dtd", 1, dest)
    finally:
        stored.write_bytes(sound)
    assert files.list_prefix(dest) == ([] if before is None else [NAME])
    assert before is None or files.read_bytes(f"{dest}/{NAME}") == before


def test_what_is_pulled_has_the_mode_of_a_new_file(uri: str, registry_folder: Path, tmp_path: Path) -> None:
    stored = artifact(registry_folder, trained(registry_folder, 1))
    stored.chmod(0o600)
    before = os.umask(0o027)
    try:
        pulled = pull(uri, "vtab-dtd", 1, tmp_path, with_backbone=True)
    finally:
        os.umask(before)
    assert pulled.backbone is not None
    modes = {file: stat.S_IMODE(os.stat(file.uri).st_mode) for file in (pulled.checkpoint, pulled.backbone)}
    assert set(modes.values()) == {0o640}, modes


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/below", "folder {0}/file/below: nothing can be written there: Not a directory"),
        ("file", "folder {0}/file: nothing can be written there: File exists"),
        ("taken", "{0}/taken/vtab-dtd.safetensors: cannot be put in place: Is a directory"),
    ],
)
def test_a_folder_that_takes_nothing_is_named(uri: str, tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "taken" / NAME).mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=f"^{re.escape(message.format(tmp_path))}$"):
        pull(uri, "vtab-dtd", 1, tmp_path / place)
    assert set(tmp_path.rglob("*")) == before


def test_the_backbone_is_put_beside_it_and_kept_where_it_is_the_same(
    uri: str, registry_folder: Path, dest: str, identity: str
) -> None:
    place = f"{dest}/backbone-{identity[:12]}.safetensors"
    files.write_bytes(place, b"another file of that name")
    pulled = pull(uri, "vtab-dtd", 1, dest, with_backbone=True)
    data = files.read_bytes(place)
    assert pulled.backbone is not None
    assert (pulled.backbone.uri, pulled.backbone.size_bytes) == (place, len(data))
    assert files.list_prefix(dest) == sorted([NAME, place.rpartition("/")[2]])
    with files.hold(place) as path:
        assert load_backbone(BACKBONE, path).identity == identity
    stored = artifact(registry_folder, data)
    away = shutil.move(stored, registry_folder / "away")
    try:
        assert fetch_backbone(uri, identity, dest) == pulled.backbone
    finally:
        shutil.move(away, stored)


def test_without_the_backbone_nothing_is_put_in_place(
    uri: str, dest: str, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.registry.backbones.EXPERIMENT", "empty")
    with pytest.raises(RegistryError, match=f"holds no backbone of identity {identity}"):
        pull(uri, "vtab-dtd", 1, dest, with_backbone=True)
    assert files.list_prefix(dest) == []


def test_an_upload_that_breaks_off_leaves_the_object_that_was_there(uri: str, s3_folder: Path) -> None:
    files.write_bytes(f"s3://bucket/x/{NAME}", b"what was there")
    parts: list[Any] = []

    def breaks_off(**call: Any) -> None:
        parts.append(call)
        if len(parts) == 2:
            raise s3_refusal("UploadPart")

    events = s3._client().meta.events
    events.register("before-call.s3.UploadPart", breaks_off)
    try:
        with pytest.raises(StorageError, match=rf"s3://bucket/x/{NAME}: UploadPart answered 403"):
            pull(uri, "vtab-dtd", 2, "s3://bucket/x")
    finally:
        events.unregister("before-call.s3.UploadPart", breaks_off)
    assert len(parts) == 2, "the file was to go in two parts"
    assert files.list_prefix("s3://bucket") == [f"x/{NAME}"]
    assert files.read_bytes(f"s3://bucket/x/{NAME}") == b"what was there"


def test_a_checkpoint_is_verified_wherever_it_lies(uri: str, registry_folder: Path, dest: str) -> None:
    place = f"{dest}/{NAME}"
    with pytest.raises((FileNotFoundError, CheckpointError), match=place):
        verify_checkpoint(place)
    sound = trained(registry_folder, 1)
    files.write_bytes(place, sound)
    verified = verify_checkpoint(place, uri)
    assert (verified.sha256, verified.known) == (sha256(sound), "is version 1 of vtab-dtd")
    for position in (3, 200, len(sound) - 1):
        files.write_bytes(place, sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        with pytest.raises(CheckpointError, match=f"^{place}: "):
            verify_checkpoint(place, uri)


def test_what_is_wrong_with_a_served_checkpoint_is_told_without_its_signature(
    registry_folder: Path, range_server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HST_CACHE", str(tmp_path / "cache"))
    place = f"{range_server.address}/{NAME}"
    sound = trained(registry_folder, 1)
    range_server.objects[f"/{NAME}"] = sound
    assert verify_checkpoint(f"{place}?signature=secret").sha256 == sha256(sound)
    range_server.objects[f"/{NAME}"] = sound[:-1]
    with pytest.raises(CheckpointError, match=re.escape(f"{place}?...: cut off")):
        verify_checkpoint(f"{place}?signature=secret")


@pytest.mark.parametrize("dest", ["http://host/x", "https://host/x", "gs://bucket/x", "s3:/bucket/x", "s3://", ""])
def test_a_place_of_another_kind_is_refused(uri: str, dest: str, tmp_path: Path, monkeypatch: Any) -> None:
    def fetched_all_the_same(*_arguments: Any) -> str:
        raise AssertionError

    monkeypatch.setattr("mlflow.MlflowClient.download_artifacts", fetched_all_the_same)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="expected"):
        pull(uri, "vtab-dtd", dest_dir=dest)
    assert list(tmp_path.iterdir()) == []


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def s3_refusal(operation: str) -> Exception:
    from botocore.exceptions import ClientError

    answer: Any = {"ResponseMetadata": {"HTTPStatusCode": 403}, "Error": {"Code": "AccessDenied"}}
    return ClientError(answer, operation)
