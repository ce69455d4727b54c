"""The index describes what the shards hold, and one that does not fit them is refused before anything is read."""

import dataclasses
import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.errors import DataError
from pipeline.data.prepare import write_manifest
from pipeline.data.shards.index import IndexEntry, index_bytes, load_index, read_entries
from pipeline.data.shards.manifest import Manifest, load_manifest

MakeShards = Callable[..., dict[str, Manifest]]
Entries = list[IndexEntry]


def index_path(manifest: Manifest) -> Path:
    return Path(manifest.uri).parent / "index.jsonl"


def entries_of(manifest: Manifest) -> Entries:
    return list(read_entries(index_path(manifest).read_bytes(), "index.jsonl"))


def test_the_bytes_of_an_entry_are_a_tar_of_that_sample_alone(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(train=11, samples_per_shard=4)["train"]
    for number, entry in enumerate(load_index(manifest).entries):
        data = (Path(manifest.uri).parent / entry.shard).read_bytes()[entry.offset : entry.offset + entry.length]
        assert hashlib.sha256(data).hexdigest() == entry.sha256
        (tmp_path / "one.tar").write_bytes(data)
        with tarfile.open(tmp_path / "one.tar") as tar:
            assert tar.getnames() == [f"{entry.key}.cls", f"{entry.key}.png"]
            assert tar.extractfile(f"{entry.key}.cls").read() == str(entry.label).encode()  # type: ignore[union-attr]
            image = tar.extractfile(f"{entry.key}.png").read()  # type: ignore[union-attr]
        first = entry.image_offset - entry.offset
        assert data[first : first + entry.image_length] == image
        assert (entry.label, entry.key) == (number % 3, f"train-{number:06d}-images-train{number}")


def test_the_index_of_trainval_is_that_of_its_parts(make_shards: MakeShards) -> None:
    manifests = make_shards(train=7, val=5, samples_per_shard=4)
    index = load_index(manifests["trainval"])
    assert index.entries == [*entries_of(manifests["train"]), *entries_of(manifests["val"])]
    assert index.shards.tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3]
    assert index.labels == [entry.label for entry in index.entries]
    assert index.counts == [7, 5]


def changed(number: int, **fields: int | str) -> Callable[[Entries], Entries]:
    def change(entries: Entries) -> Entries:
        entries[number] = dataclasses.replace(entries[number], **fields)  # type: ignore[arg-type]
        return entries

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(4, label=3), r"train-000001.tar: sample 'train-000004-images-train4': label 3 is out of range; 3"),
        (changed(4, label=-1), "label -1 is out of range; 3 classes: 0 to 2"),
        (changed(4, label=1 << 70), "label 1180591620717411303424 is out of range"),
        (changed(5, key="train-000000-images-train0"), "stands in train-000000.tar already"),
        (changed(4, offset=512, shard="train-000000.tar"), "train-000000.tar: 5 samples in the index, 4 in"),
        (changed(5, offset=0), "bytes 0 to 2048 are not its own in the tar"),
        (changed(6, length=1 << 30), "are not its own in the tar"),
        (changed(6, length=0), "are not its own in the tar"),
        (changed(5, image_offset=2047), r"its image's \d+ bytes from 2047 on are not in it"),
        (changed(6, image_length=513), "its image's 513 bytes from 5632 on are not in it"),
        (changed(6, image_length=0), "its image's 0 bytes from 5632 on are not in it"),
        (changed(0, shard="other.tar"), "is in 'other.tar', which the manifest does not list"),
        (changed(0, shard="../../x.tar"), "which the manifest does not list"),
        (lambda entries: entries[:-1], "train-000001.tar: 2 samples in the index, 3 in the manifest"),
        (lambda entries: [*entries[4:], *entries[:4]], "not in the order of the manifest's shards"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    change: Callable[[Entries], Entries], message: str, make_shards: MakeShards
) -> None:
    manifest = make_shards(train=7, samples_per_shard=4)["train"]
    manifest = write_manifest(manifest, index_bytes(change(entries_of(manifest))))
    with pytest.raises(DataError, match=message):
        load_index(load_manifest(manifest.uri))


@pytest.mark.parametrize("line", [b"no json", b"[]", b'{"key": "a"}', b"\xff", b"[" * 100_000])
def test_a_line_that_is_no_entry_is_named(line: bytes, make_shards: MakeShards) -> None:
    manifest = make_shards(train=7)["train"]
    manifest = write_manifest(manifest, index_path(manifest).read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=r"index.jsonl:8: (not a line of an index|expected key, label, shard)"):
        load_index(manifest)


def test_a_damaged_or_missing_index_is_an_error(make_shards: MakeShards) -> None:
    manifest = make_shards(train=7)["train"]
    data = index_path(manifest).read_bytes()
    index_path(manifest).write_bytes(data.replace(b'"label": 1', b'"label": 2', 1))
    with pytest.raises(DataError, match=r"index.jsonl: its sha256 is .*, its manifest says .*; write the shards again"):
        load_index(manifest)
    index_path(manifest).unlink()
    with pytest.raises(DataError, match=r"index.jsonl: no such index, though its manifest names it"):
        load_index(manifest)
