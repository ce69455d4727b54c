"""Verifying written shards: all damage is found; what is left out must be allowed, is counted and recorded."""

import dataclasses
import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hst.preprocessing import Preprocessing
from pipeline.data import verify
from pipeline.data.batches.streaming import open_split
from pipeline.data.errors import DataError
from pipeline.data.prepare import write_manifest
from pipeline.data.shards.index import IndexEntry, index_bytes, load_index, read_entries
from pipeline.data.shards.manifest import Manifest, load_manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.data.verify import verify_task
from tests.pipeline.data.conftest import faults_of
from tests.pipeline.data.shards.changed_shards import Members, replaced, write_shard

MakeShards = Callable[..., dict[str, Manifest]]
SAMPLE_BYTES = 2048


def damage(folder: Path, shard: str, first_byte: int, num_bytes: int = 1) -> None:
    data = bytearray((folder / shard).read_bytes())
    for i in range(first_byte, first_byte + num_bytes):
        data[i] ^= 1
    (folder / shard).write_bytes(data)


def test_whole_shards_are_found_whole(make_shards: MakeShards, tmp_path: Path) -> None:
    manifests = make_shards(train=12, samples_per_shard=5)
    seen: list[int] = []
    assert verify_task(str(tmp_path / "shards"), "vtab-tiny", progress=seen.append) == (manifests, [])
    assert sorted(seen) == sorted(shard.num_samples for s in ("train", "val", "test") for shard in manifests[s].shards)
    assert not faults_of(manifests["trainval"])


def test_every_damaged_sample_and_missing_shard_is_named(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(train=12, samples_per_shard=3)["train"]
    folder = tmp_path / "shards/vtab-tiny/train"
    damage(folder, "train-000001.tar", 600)
    damage(folder, "train-000001.tar", 2 * SAMPLE_BYTES + 600)
    (folder / "train-000003.tar").unlink()
    faults = faults_of(manifest)
    assert [fault for fault in faults if "train-000001" in fault] == faults[:2]
    assert "sample 'train-000003-images-train3': its 2048 bytes have the sha256" in faults[0]
    assert "sample 'train-000005-images-train5'" in faults[1]
    assert faults[2].endswith("train-000003.tar: no such shard; its 3 samples are lost")


def test_damage_outside_of_all_samples_is_found_too(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(train=3)["train"]
    damage(tmp_path / "shards/vtab-tiny/train", "train-000000.tar", 3 * SAMPLE_BYTES + 5)
    (fault,) = faults_of(manifest)
    assert re.search(r"train-000000.tar: its \d+ bytes have the sha256 .*; every sample of it is whole", fault)


@pytest.mark.parametrize("cut", [2 * SAMPLE_BYTES, 2 * SAMPLE_BYTES + 700])
def test_a_cut_shard_loses_the_samples_behind_the_cut(cut: int, make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(train=4, samples_per_shard=4)["train"]
    path = tmp_path / "shards/vtab-tiny/train/train-000000.tar"
    path.write_bytes(path.read_bytes()[:cut])
    assert all(f"sample 'train-00000{n}-" in fault for n, fault in zip((2, 3), faults_of(manifest), strict=True))


def test_damaged_samples_are_left_out_if_the_user_allows_so_many(make_shards: MakeShards, tmp_path: Path) -> None:
    before = make_shards(train=12, val=6, samples_per_shard=3)
    root, folder = str(tmp_path / "shards"), tmp_path / "shards/vtab-tiny/train"
    damage(folder, "train-000001.tar", 600)
    (folder / "train-000003.tar").unlink()
    with pytest.raises(DataError, match=r"4 faults, 3 may be left out"):
        verify_task(root, "vtab-tiny", max_dropped=3)
    assert load_manifest(before["train"].uri) == before["train"]

    after, dropped = verify_task(root, "vtab-tiny", max_dropped=4)
    assert len(dropped) == 4
    assert all(note.startswith("left out: ") and "write_shards" not in note for note in dropped)
    lost = [f"train-{n:06d}-images-train{n}" for n in (3, 9, 10, 11)]
    assert after["train"].source["skipped"] == after["trainval"].source["skipped"] == lost
    assert after["train"].num_samples == 8
    assert after["trainval"].num_samples == 14
    assert after["val"] == before["val"]
    assert verify_task(root, "vtab-tiny") == (after, [])
    damage(folder, "train-000000.tar", 600)
    again, _ = verify_task(root, "vtab-tiny", max_dropped=1)
    assert again["train"].source["skipped"] == ["train-000000-images-train0", *lost], "what was left out before is kept"
    split = open_split(again["train"].uri, Preprocessing(image_size=8))
    reds = [red for batch in split.eval_batches(batch_size=5) for red in batch.images[:, 0, 0, 0].tolist()]
    assert reds == [1, 2, 4, 5, 6, 7, 8]


def test_a_reader_says_what_finds_the_rest_of_the_damage_and_verify_itself_does_not(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    manifest = make_shards(train=4)["train"]
    damage(tmp_path / "shards/vtab-tiny/train", "train-000000.tar", 600)
    with pytest.raises(DataError, match=r"replaced \(`jobs/write_shards.py --verify` finds all that is"):
        list(ShardReader(manifest, load_index(manifest)).read(range(4)))
    assert not any("write_shards" in fault for fault in faults_of(manifest))


def test_nothing_is_dropped_where_a_split_would_be_empty(make_shards: MakeShards, tmp_path: Path) -> None:
    before = make_shards(train=6, val=2)
    damage(tmp_path / "shards/vtab-tiny/train", "train-000000.tar", 600)
    (tmp_path / "shards/vtab-tiny/val/val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"nothing of val in .* is whole"):
        verify_task(str(tmp_path / "shards"), "vtab-tiny", max_dropped=99)
    assert load_manifest(before["train"].uri) == before["train"]


@pytest.mark.parametrize("damaged", ["a sample", "the end of a tar"])
def test_what_was_killed_before_trainval_is_found_and_mended(
    damaged: str, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(train=3, val=2)
    root, folder = str(tmp_path / "shards"), tmp_path / "shards/vtab-tiny/train"
    if damaged == "a sample":
        damage(folder, "train-000000.tar", 600)
    else:
        path = folder / "train-000000.tar"
        path.write_bytes(path.read_bytes()[: 3 * SAMPLE_BYTES])

    def killed(*_: Manifest) -> Manifest:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verify, "write_trainval", killed)
        with pytest.raises(KeyboardInterrupt):
            verify_task(root, "vtab-tiny", max_dropped=1)
    with pytest.raises(DataError, match=r"trainval/manifest.json: does not name the shards of train and val"):
        verify_task(root, "vtab-tiny")
    after, _ = verify_task(root, "vtab-tiny", max_dropped=1)
    split = open_split(after["trainval"].uri, Preprocessing(image_size=8), memory_limit_bytes=0)
    assert sum(len(batch.labels) for batch in split.eval_batches(batch_size=2)) == after["trainval"].num_samples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(".png", b"no image"), "not a readable image"),
        (replaced(".cls", b"1"), r"its label \(cls\) is b'1', its index says 0"),
        (replaced(".cls", b"cat"), r"its label \(cls\) is b'cat', its index says 0"),
        (lambda members: members[1:], r"its label \(cls\) is None, its index says 0"),
        (lambda members: [members[0], *members[2:]], "has 0 images"),
        (lambda members: [*members[:2], (members[1][0][:-3] + "jpg", b"jpg"), *members[2:]], "has 2 images"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named_with_its_shard(
    change: Callable[[Members], Members], message: str, make_shards: MakeShards
) -> None:
    manifest = make_shards(test=9, samples_per_shard=3)["test"]
    changed = write_shard(manifest, 1, change)
    (fault,) = faults_of(changed)
    assert re.search(rf"^[^\n]*test-000001.tar: sample 'test-000003-images-test3': .*{message}", fault)


def rewritten(manifest: Manifest, change: Callable[[list[IndexEntry]], list[IndexEntry]]) -> Manifest:
    uri = Path(manifest.uri).parent / "index.jsonl"
    return write_manifest(manifest, index_bytes(change(list(read_entries(uri.read_bytes(), str(uri))))))


def test_members_that_stand_in_another_order_than_the_index_are_found(make_shards: MakeShards) -> None:
    manifest = make_shards(test=9, samples_per_shard=3)["test"]
    path = Path(manifest.shard_uri(manifest.shards[1]))
    data = path.read_bytes()
    path.write_bytes(data[SAMPLE_BYTES : 2 * SAMPLE_BYTES] + data[:SAMPLE_BYTES] + data[2 * SAMPLE_BYTES :])

    def swapped(entries: list[IndexEntry]) -> list[IndexEntry]:
        first, second = entries[3:5]
        entries[3] = dataclasses.replace(first, sha256=second.sha256)
        entries[4] = dataclasses.replace(second, sha256=first.sha256)
        return entries

    faults = faults_of(rewritten(manifest, swapped))
    assert "sample 'test-000003-images-test3': the tar has 'test-000004-images-test4' in its place" in faults[0]


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_what_other_readers_would_execute_is_only_bytes_here(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default webdataset unpickles these members."""
    monkeypatch.chdir(tmp_path)
    hostile = pickle.dumps(_Runs())

    def with_pickles(members: Members) -> Members:
        key = members[0][0].partition(".")[0]
        return [*members[:2], *((f"{key}.{kind}", hostile) for kind in ("pyd", "pickle", "pth")), *members[2:]]

    manifest = write_shard(make_shards(test=3)["test"], 0, with_pickles)
    assert faults_of(manifest) == []
    split = open_split(manifest.uri, Preprocessing(image_size=8), memory_limit_bytes=0)
    assert sum(len(batch.labels) for batch in split.eval_batches(batch_size=2)) == 3
    assert not (tmp_path / "executed").exists()


def test_an_index_that_takes_the_image_from_another_place_is_found(make_shards: MakeShards) -> None:
    manifest = make_shards(test=3)["test"]

    def moved(entries: list[IndexEntry]) -> list[IndexEntry]:
        entries[1] = dataclasses.replace(entries[1], image_length=entries[1].image_length - 1)
        return entries

    (fault,) = faults_of(rewritten(manifest, moved))
    assert "sample 'test-000001-images-test1': its index says that its image is in another place" in fault


def test_a_file_that_is_no_tar_is_found(make_shards: MakeShards) -> None:
    manifest = make_shards(test=3)["test"]
    path = Path(manifest.shard_uri(manifest.shards[0]))
    data = (b"not a tar" * 3000)[: manifest.shards[0].bytes]
    path.write_bytes(data)

    def hashed(entries: list[IndexEntry]) -> list[IndexEntry]:
        owns = [data[entry.offset : entry.offset + entry.length] for entry in entries]
        return [
            dataclasses.replace(entry, sha256=hashlib.sha256(own).hexdigest())
            for entry, own in zip(entries, owns, strict=True)
        ]

    faults = faults_of(rewritten(manifest, hashed))
    assert "sample 'test-000000-images-test0': not of a readable WebDataset tar" in faults[0]
