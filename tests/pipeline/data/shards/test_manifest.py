"""Manifests: one that names something impossible, or that other code has written, is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.errors import DataError
from pipeline.data.shards.manifest import Manifest, load_manifest

MakeShards = Callable[..., dict[str, Manifest]]
MANIFEST_CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "version": ({"format_version": 1}, "format_version is 1; this code reads 3"),
    "task": ({"task": "../x"}, "no task name"),
    "split": ({"split": "dev"}, "expected one of train, val, trainval, test"),
    "no classes": ({"class_names": []}, "at least one"),
    "no indexes": ({"indexes": []}, "indexes: expected a list, at least one"),
    "another index": (
        {"indexes": [{"name": "../../x/index.jsonl", "sha256": "0" * 64}]},
        "expected index.jsonl of one",
    ),
    "index hash": ({"indexes": [{"name": "index.jsonl", "sha256": "x"}]}, "expected 64 hexadecimal digits"),
    "no shards": ({"shards": []}, "shards: expected a list, at least one"),
    "extra": ({"code": "x"}, "expected the fields"),
}


@pytest.mark.parametrize(("changes", "message"), MANIFEST_CHANGES.values(), ids=MANIFEST_CHANGES)
def test_a_manifest_of_something_else_is_refused(
    changes: dict[str, object], message: str, make_shards: MakeShards
) -> None:
    path = Path(make_shards()["train"].uri)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=message):
        load_manifest(str(path))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "../../other/train/x.tar", "leads out of the task's folder"),
        ("name", "/etc/x.tar", "leads out of the task's folder"),
        ("name", "pipe:cat x.tar", "leads out of the task's folder"),
        ("name", "x.pickle", "is no .tar"),
        ("sha256", "0", "expected 64 hexadecimal digits"),
        ("bytes", -1, "expected a whole number of at least 1"),
        ("num_samples", 0, "expected a whole number of at least 1"),
        ("num_samples", True, "expected a whole number of at least 1"),
    ],
)
def test_a_manifest_that_names_impossible_shards_is_refused(
    field: str, value: object, message: str, make_shards: MakeShards
) -> None:
    path = Path(make_shards()["train"].uri)
    content = json.loads(path.read_text())
    content["shards"][0][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_manifest(str(path))


def test_a_manifest_that_names_a_shard_twice_is_refused(make_shards: MakeShards) -> None:
    """Otherwise its samples would be trained on twice an epoch."""
    path = Path(make_shards()["train"].uri)
    content = json.loads(path.read_text())
    content["shards"].append(content["shards"][0])
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    with pytest.raises(DataError, match="shards: one name stands twice"):
        load_manifest(str(path))


def test_a_manifest_written_by_another_hand_is_refused(make_shards: MakeShards) -> None:
    """The registry identifies data by the manifest's sha256, so equal content must have equal bytes."""
    path = Path(make_shards()["train"].uri)
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(DataError, match="changed after it was written"):
        load_manifest(str(path))


@pytest.mark.parametrize("data", [b"\x00", b"\xff", b"[" * 100_000], ids=["zero", "no text", "deep"])
def test_a_manifest_that_is_no_json_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(DataError, match="not a manifest"):
        load_manifest(str(tmp_path / "manifest.json"))
