"""The registry: what becomes champion, what pull lets through, on a bare sqlite file and on a real server."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hst.checkpoint import CheckpointError, read_header, save_checkpoint
from pipeline.registry.backbones import fetch_backbone, store_backbone
from pipeline.registry.files import pull, verify_checkpoint, verify_version
from pipeline.registry.versions import (
    RegisteredVersion,
    RegistryError,
    get_version,
    list_tasks,
    list_versions,
    promote,
    register,
)
from pipeline.tracking.mlflow_client import TrackingError, experiment_id, open_client
from tests.hst.small_models import CLASSIFICATION

IDENTITY = "ab" * 32
OTHER_IDENTITY = "cd" * 32


def checkpoint(folder: Path, *, val: float | None = 0.5, task: str = "vtab-dtd", **changes: Any) -> Path:
    """A small light checkpoint whose bytes follow from the arguments."""
    described: dict[str, Any] = {
        "backbone": {"name": "vit_tiny_patch16_224", "identity": changes.pop("identity", IDENTITY)},
        "preprocessing": {"image_size": changes.pop("image_size", 112)},
        "metrics": {"test/top1": 0.4} | ({} if val is None else {"val/top1": val}),
        "provenance": {"seed": 0, "protocol": "selection+final", "data_manifest_sha256": {"train": "1", "val": "2"}}
        | changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    path = folder / f"{number}.safetensors"
    save_checkpoint(
        path,
        {"weight": torch.full((3,), float(number))},
        task=task,
        class_names=["a", "b"],
        method={"name": "hst"},
        **CLASSIFICATION,
        head={"kind": "classification", "input": "side", "num_classes": 2},
        code_version="0.1.0",
        **described,
    )
    return path


def new_run(uri: str, name: str = "run") -> str:
    client = open_client(uri)
    return str(client.create_run(experiment_id(client, "registry-test"), run_name=name).info.run_id)


@pytest.fixture
def registered(uri: str, tmp_path: Path) -> Callable[..., RegisteredVersion]:
    run_id = new_run(uri)

    def from_run(**arguments: Any) -> RegisteredVersion:
        return register(uri, checkpoint(tmp_path / "trained", **arguments), run_id=run_id)

    return from_run


def pulled_bytes(*arguments: Any, **named: Any) -> bytes:
    """What `pull` put in place."""
    return Path(pull(*arguments, **named).checkpoint.uri).read_bytes()


def champion(uri: str, task: str = "vtab-dtd") -> int:
    return get_version(uri, task).version


Register = Callable[..., RegisteredVersion]


def test_the_first_version_with_a_val_result_takes_both_aliases(registered: Register, uri: str) -> None:
    first = registered(val=0.5)
    assert first.version == 1
    assert first.aliases == ["champion", f"champion-{IDENTITY[:12]}"]
    assert first.reason == "first with a val result"
    assert champion(uri) == 1


@pytest.mark.parametrize(("val", "takes"), [(0.6, True), (0.5, False), (0.4999, False)])
def test_a_comparable_version_takes_the_alias_if_val_is_strictly_better(
    registered: Register, uri: str, val: float, takes: bool
) -> None:
    registered(val=0.5)
    second = registered(val=val)
    assert second.is_champion == takes
    assert ("better than 50.00% of version 1" in second.reason) == takes
    assert champion(uri) == (2 if takes else 1)


def test_a_version_is_tagged_with_kind_method_and_measure(registered: Register) -> None:
    tags = registered(val=0.5).tags
    named = {name: tags[name] for name in ("kind", "method", "metric", "metric_unit", "higher_is_better")}
    assert named == {
        "kind": "classification",
        "method": "hst",
        "metric": "top1",
        "metric_unit": "%",
        "higher_is_better": "true",
    }
    assert (tags["val_top1"], tags["test_top1"]) == ("0.5", "0.4")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_size": 224}, "other image size"),
        ({"protocol": "test-selected"}, "other protocol"),
        ({"data_manifest_sha256": {"train": "1", "val": "3"}}, "other data"),
        ({"identity": OTHER_IDENTITY}, "other backbone"),
    ],
)
def test_a_better_val_that_is_not_comparable_takes_nothing(
    registered: Register, uri: str, change: dict[str, Any], reason: str
) -> None:
    registered(val=0.5)
    second = registered(val=0.9, **change)
    assert not second.is_champion
    assert second.reason == f"not comparable with version 1: {reason}"
    assert champion(uri) == 1


def test_each_backbone_has_its_own_champion(registered: Register) -> None:
    registered(val=0.5)
    assert registered(val=0.4, identity=OTHER_IDENTITY).aliases == [f"champion-{OTHER_IDENTITY[:12]}"]
    assert registered(val=0.3, identity=OTHER_IDENTITY).aliases == []
    assert registered(val=0.6).aliases == ["champion", f"champion-{IDENTITY[:12]}"]


@pytest.mark.parametrize("change", [{"val": None}, {"protocol": None}, {"data_manifest_sha256": None}])
def test_without_val_or_record_a_version_is_never_promoted_by_itself(
    registered: Register, uri: str, change: dict[str, Any]
) -> None:
    found = registered(**change)
    assert found.aliases == []
    assert "never promoted by itself" in found.reason
    with pytest.raises(RegistryError, match=r"no version is champion \(there are: 1\)"):
        pull(uri, "vtab-dtd")


def test_promote_moves_the_aliases_by_hand(registered: Register, uri: str) -> None:
    registered(val=0.5)
    registered(val=None, identity=OTHER_IDENTITY)
    promoted = promote(uri, "vtab-dtd", 2)
    assert promoted.aliases == ["champion", f"champion-{OTHER_IDENTITY[:12]}"]
    assert promoted.reason == "promoted by hand"
    assert get_version(uri, "vtab-dtd", 1).aliases == [f"champion-{IDENTITY[:12]}"]
    with pytest.raises(RegistryError, match="no version 7; there are: 1, 2"):
        promote(uri, "vtab-dtd", 7)


def test_registering_again_is_the_same_version(uri: str, tmp_path: Path) -> None:
    run_id, path = new_run(uri), checkpoint(tmp_path / "trained")
    first = register(uri, path, run_id=run_id)
    assert register(uri, path, run_id=run_id) == first
    assert len(list_versions(uri, "vtab-dtd")) == 1


def test_a_registration_interrupted_before_its_aliases_is_finished_by_the_next(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, path = new_run(uri), checkpoint(tmp_path / "trained")

    def killed(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.registry.versions.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            register(uri, path, run_id=run_id)
    assert get_version(uri, "vtab-dtd", 1).aliases == []
    again = register(uri, path, run_id=run_id)
    assert (again.version, again.is_champion) == (1, True)


def test_of_two_that_register_at_once_the_better_is_champion(uri: str, tmp_path: Path) -> None:
    for turn in range(3):
        prefix = f"turn{turn}-"
        paths = {val: checkpoint(tmp_path / f"{turn}-{val}", val=val) for val in (0.5, 0.9, 0.6)}
        register(uri, paths[0.5], run_id=new_run(uri), prefix=prefix)
        together = threading.Barrier(2)

        def write(val: float, paths: dict[float, Path] = paths, prefix: str = prefix, together: Any = together) -> None:
            run_id = new_run(uri)
            together.wait(30)
            register(uri, paths[val], run_id=run_id, prefix=prefix)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, (0.9, 0.6)))
        assert get_version(uri, "vtab-dtd", prefix=prefix).facts.val == 0.9


def test_a_version_made_by_hand_in_mlflow_stops_no_registration(uri: str, tmp_path: Path) -> None:
    client = open_client(uri)
    client.create_registered_model("vtab-dtd", tags={"hst.task": "vtab-dtd"})
    client.create_model_version("vtab-dtd", str(tmp_path))
    client.set_registered_model_alias("vtab-dtd", "champion", "1")
    found = register(uri, checkpoint(tmp_path / "trained"), run_id=new_run(uri))
    assert (found.version, found.is_champion) == (2, False)
    assert "version 1, which is no light checkpoint of this registry" in found.reason
    assert promote(uri, "vtab-dtd", 2).is_champion


def test_a_damaged_file_is_not_registered(uri: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "trained")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match="damaged"):
        register(uri, path, run_id=new_run(uri))
    assert list_tasks(uri) == {}


def test_a_later_file_of_the_same_run_leaves_the_earlier_version_pullable(uri: str, tmp_path: Path) -> None:
    run_id = new_run(uri)
    first, second = (checkpoint(tmp_path / "trained", val=val) for val in (0.5, 0.6))
    register(uri, first, run_id=run_id)
    register(uri, second, run_id=run_id)
    assert pulled_bytes(uri, "vtab-dtd", 1, tmp_path / "one") == first.read_bytes()
    assert pulled_bytes(uri, "vtab-dtd", None, tmp_path / "two") == second.read_bytes()


def test_prefixes_keep_users_apart(uri: str, tmp_path: Path) -> None:
    run_id = new_run(uri)
    register(uri, checkpoint(tmp_path / "trained", val=0.5), run_id=run_id)
    mine = register(uri, checkpoint(tmp_path / "trained", val=0.1), run_id=run_id, prefix="anna-")
    assert (mine.name, mine.is_champion) == ("anna-vtab-dtd", True)
    assert [v.name for v in list_tasks(uri)["vtab-dtd"]] == ["vtab-dtd"]
    assert [v.name for v in list_tasks(uri, prefix="anna-")["vtab-dtd"]] == ["anna-vtab-dtd"]
    pulled = pull(uri, "vtab-dtd", dest_dir=tmp_path / "mine", prefix="anna-")
    assert pulled.checkpoint.uri == str(tmp_path / "mine" / "vtab-dtd.safetensors")
    assert pulled.header == read_header(pulled.checkpoint.uri)
    assert pulled.header.metrics["val/top1"] == 0.1


def artifact_of(tmp_path: Path) -> Path:
    (stored,) = (tmp_path / "artifacts").rglob("vtab-dtd.safetensors")
    return stored


def test_pull_refuses_each_flipped_byte_and_leaves_what_was_there(
    registered: Register, uri: str, tmp_path: Path
) -> None:
    registered()
    stored = artifact_of(tmp_path)
    sound = stored.read_bytes()
    here = tmp_path / "here"
    before = pulled_bytes(uri, "vtab-dtd", dest_dir=here)
    for position in (0, 20, 300, len(sound) - 1):
        stored.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        expected, found = (hashlib.sha256(data).hexdigest() for data in (sound, stored.read_bytes()))
        with pytest.raises(RegistryError, match=f"sha256 should be {expected}, is {found}"):
            pull(uri, "vtab-dtd", dest_dir=here)
        assert [path.name for path in here.iterdir()] == ["vtab-dtd.safetensors"]
        assert (here / "vtab-dtd.safetensors").read_bytes() == before


def test_a_pull_cut_off_leaves_no_file(registered: Register, uri: str, tmp_path: Path, monkeypatch: Any) -> None:
    registered()

    def cut_off(_client: Any, _run: str, path: str, folder: str) -> str:
        (Path(folder) / "part").write_bytes(b"half of it")
        raise OSError("connection reset")

    monkeypatch.setattr("mlflow.MlflowClient.download_artifacts", cut_off)
    with pytest.raises(RegistryError, match="cannot be fetched: connection reset"):
        pull(uri, "vtab-dtd", dest_dir=tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_file_of_another_task_is_refused(registered: Register, uri: str, tmp_path: Path) -> None:
    found = registered()
    other = checkpoint(tmp_path / "trained", task="vtab-svhn")
    artifact_of(tmp_path).write_bytes(other.read_bytes())
    open_client(uri).set_model_version_tag(found.name, "1", "sha256", hashlib.sha256(other.read_bytes()).hexdigest())
    with pytest.raises(RegistryError, match="task should be vtab-dtd, the file's header says vtab-svhn"):
        pull(uri, "vtab-dtd", dest_dir=tmp_path / "here")


@pytest.mark.parametrize("task", ["../etc", "/abs", "a/b", "", ".", "Vtab", "vtab dtd", "x' OR name LIKE '%"])
def test_names_that_could_leave_the_folder_are_refused(uri: str, task: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="expected a name that matches"):
        pull(uri, task, dest_dir=tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("identity", ["", "vit"])
def test_a_broken_tag_of_the_backbone_does_not_stand_against_a_proved_file(
    registered: Register, uri: str, identity: str, tmp_path: Path
) -> None:
    found = registered()
    open_client(uri).set_model_version_tag(found.name, "1", "backbone_identity", identity)
    assert pull(uri, "vtab-dtd", dest_dir=tmp_path).header.backbone["identity"] == IDENTITY
    open_client(uri).set_model_version_tag(found.name, "1", "backbone_identity", OTHER_IDENTITY)
    with pytest.raises(RegistryError, match="backbone identity should be"):
        pull(uri, "vtab-dtd", dest_dir=tmp_path)


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", ""])
def test_an_artifact_path_outside_the_run_is_refused(registered: Register, uri: str, path: str, tmp_path: Path) -> None:
    found = registered()
    open_client(uri).set_model_version_tag(found.name, "1", "file", path)
    with pytest.raises(RegistryError, match="names no artifact of its run"):
        pull(uri, "vtab-dtd", dest_dir=tmp_path / "here")


def test_an_artifact_that_came_from_elsewhere_is_refused(
    registered: Register, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered()
    (tmp_path / "secret").write_bytes(b"secret")
    monkeypatch.setattr(type(open_client(uri)), "download_artifacts", lambda *_: str(tmp_path / "secret"))
    with pytest.raises(RegistryError, match="is not a file"):
        pull(uri, "vtab-dtd", dest_dir=tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_verify_of_a_file_asks_the_registry_where_it_can(registered: Register, uri: str, tmp_path: Path) -> None:
    registered()
    path = pull(uri, "vtab-dtd", dest_dir=tmp_path).checkpoint.uri
    assert verify_checkpoint(path).known is None
    assert verify_checkpoint(path, uri).known == "is version 1 of vtab-dtd"
    assert verify_checkpoint(path, "http://127.0.0.1:9").known is None
    stranger = checkpoint(tmp_path / "trained", val=0.7)
    with pytest.raises(RegistryError, match="sound in itself, but no version of vtab-dtd"):
        verify_checkpoint(stranger, uri)
    assert verify_version(uri, "vtab-dtd").version == 1
    artifact_of(tmp_path).write_bytes(stranger.read_bytes())
    with pytest.raises(RegistryError, match="damaged"):
        verify_version(uri, "vtab-dtd")


def test_looking_does_not_make_a_database(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no such database"):
        list_tasks(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/x", "sqlite:///relative.db", "http://", ""])
def test_other_tracking_uris_are_refused_with_what_is_possible(uri: str) -> None:
    with pytest.raises(TrackingError, match="expected http"):
        list_tasks(uri)


def test_a_backbone_is_stored_once_and_comes_back_with_its_identity(uri: str, tmp_path: Path) -> None:
    from hst.backbone import load_backbone

    name = "hst_vit_micro_patch8_64"
    identity = load_backbone(name, "random").identity
    run_id = store_backbone(uri, name, identity, "random")
    assert store_backbone(uri, name, identity, tmp_path / "not read again") == run_id
    path = Path(fetch_backbone(uri, identity, tmp_path / "here").uri)
    assert path.name == f"backbone-{identity[:12]}.safetensors"
    assert load_backbone(name, path).identity == identity
    register(uri, checkpoint(tmp_path / "trained", identity=identity), run_id=new_run(uri))
    pull(uri, "vtab-dtd", dest_dir=tmp_path / "both", with_backbone=True)
    assert {p.name for p in (tmp_path / "both").iterdir()} == {path.name, "vtab-dtd.safetensors"}
    with pytest.raises(RegistryError, match=f"identity should be {OTHER_IDENTITY}, is {identity}"):
        store_backbone(uri, name, OTHER_IDENTITY, "random")


def test_without_the_backbone_nothing_is_put_in_place(registered: Register, uri: str, tmp_path: Path) -> None:
    registered()
    with pytest.raises(RegistryError, match="holds no backbone of identity"):
        pull(uri, "vtab-dtd", dest_dir=tmp_path / "here", with_backbone=True)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_damaged_backbone_is_refused(uri: str, tmp_path: Path) -> None:
    from hst.backbone import load_backbone

    name = "hst_vit_micro_patch8_64"
    identity = load_backbone(name, "random").identity
    store_backbone(uri, name, identity, "random")
    (stored,) = (tmp_path / "artifacts").rglob(f"{identity}.safetensors")
    data = stored.read_bytes()
    stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RegistryError, match="damaged: sha256 should be"):
        fetch_backbone(uri, identity, tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_through_a_real_server_pulled_equals_registered(mlflow_server: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "trained", val=0.5)
    found = register(mlflow_server, path, run_id=new_run(mlflow_server), prefix="served-")
    assert found.is_champion
    assert register(mlflow_server, path, run_id=found.run_id, prefix="served-") == found
    pulled = pulled_bytes(mlflow_server, "vtab-dtd", dest_dir=tmp_path / "here", prefix="served-")
    assert pulled == path.read_bytes()
    open_client(mlflow_server).set_model_version_tag(found.name, "1", "file", "checkpoint/none.safetensors")
    with pytest.raises(RegistryError, match="cannot be fetched"):
        pull(mlflow_server, "vtab-dtd", dest_dir=tmp_path / "here", prefix="served-")
