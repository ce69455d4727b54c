"""Sources -> shards: plain WebDataset tars with the source's own bytes, and a manifest for each split, written last.

The same samples give the same bytes, wherever and whenever they are written. A split is written again only if its
source changed; to see that without reading every image, `source.json` beside the manifest keeps what the files' names,
sizes and dates were.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from webdataset import TarWriter

from pipeline import storage
from pipeline.data.errors import DataError
from pipeline.data.manifest import Manifest, Shard, load_manifest, manifest_uri
from pipeline.data.samples import SourceSample
from pipeline.data.shard_reader import ShardReader
from pipeline.data.sources import Source, open_source
from pipeline.tasks.catalogue import Task

SAMPLES_PER_SHARD = 1000
BYTES_PER_SHARD = 128 << 20
_OBSERVED_NAME = "source.json"


def prepare_task(
    task: Task, data_uri: str, shards_uri: str, *, seed: int = 0, samples_per_shard: int = SAMPLES_PER_SHARD
) -> dict[str, Manifest]:
    """Brings a task's data into shards, unless they are there already.

    Args:
        task: Whose data.
        data_uri: Raw data, or a root of shards, which is used as it is.
        shards_uri: Root of the shards that are written: <root>/<task>/<split>/.
        seed: Chooses val where the source has none.
        samples_per_shard: At most; a shard also ends at 128 MiB.

    Returns:
        The manifests of train, val, trainval (the shards of both, no new bytes) and test.

    Raises:
        DataError: the source is missing or faulty; no manifest is then left that would be used.
    """
    source = open_source(data_uri, task, seed=seed)
    if source.manifests:
        return source.manifests
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}: expected at least 1")
    manifests: dict[str, Manifest] = {}
    faults: list[str] = []
    for split in ("train", "val", "test"):
        try:
            manifests[split] = _prepare_split(task, source, split, shards_uri, samples_per_shard)
        except DataError as error:
            faults += error.faults
    if faults:
        raise DataError(f"{task.name}: the images in {source.uri} cannot be written to shards", faults)
    manifests["trainval"] = _prepare_trainval(task, manifests["train"], manifests["val"], shards_uri)
    return {split: manifests[split] for split in ("train", "val", "trainval", "test")}


def verify_split(manifest: Manifest) -> None:
    """Reads every byte of a split again.

    Raises:
        DataError: with every shard that is missing or damaged, and every key that stands twice.
    """
    reader = ShardReader(manifest)
    faults: list[str] = []
    seen: dict[str, str] = {}
    for shard in manifest.shards:
        try:
            for sample in reader.read(shard):
                if sample.key in seen:
                    faults.append(f"{sample.shard}: sample {sample.key!r} stands in {seen[sample.key]} already")
                seen[sample.key] = sample.shard
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError(f"{manifest.uri}: the split is damaged; write its shards again", faults)


def _prepare_split(task: Task, source: Source, split: str, shards_uri: str, samples_per_shard: int) -> Manifest:
    uri = manifest_uri(shards_uri, task.name, split)
    folder = storage.join(uri, "..")
    observed = _observed(source, split, samples_per_shard)
    existing = _existing(uri, observed)
    if existing is not None:
        return existing
    # A split without a manifest does not exist: nobody takes old shards and new ones together for one split.
    for other in (split, "trainval") if split in ("train", "val") else (split,):
        storage.delete(manifest_uri(shards_uri, task.name, other))
    shards, fingerprint = _write_shards(source, split, folder, samples_per_shard)
    for name in set(storage.list_prefix(folder)) - {shard.name for shard in shards}:
        if name.endswith(".tar"):  # of a longer split that was here before; tools that read *.tar would take it in
            storage.delete(storage.join(folder, name))
    recorded: dict[str, Any] = {"layout": source.layout, "fingerprint": fingerprint}
    if source.val_origin and split in ("train", "val"):
        recorded["val_origin"] = source.val_origin
    if source.test_origin:  # what is no test is all the rest
        recorded["test_origin"] = source.test_origin
    manifest = Manifest(
        task=task.name,
        split=split,
        class_names=tuple(source.class_names),
        source=recorded,
        shards=tuple(shards),
        uri=storage.absolute(uri),
    )
    storage.write_bytes(uri, manifest.to_bytes())
    note = {"observed": observed, "manifest_sha256": manifest.sha256}
    storage.write_bytes(storage.join(folder, _OBSERVED_NAME), json.dumps(note).encode())
    return manifest


def _prepare_trainval(task: Task, train: Manifest, val: Manifest, shards_uri: str) -> Manifest:
    uri = manifest_uri(shards_uri, task.name, "trainval")
    recorded = {"layout": train.source["layout"], "fingerprints": [m.source["fingerprint"] for m in (train, val)]}
    recorded |= {name: val.source[name] for name in ("val_origin", "test_origin") if name in val.source}
    shards = [
        Shard(name=f"../{part.split}/{s.name}", bytes=s.bytes, sha256=s.sha256, num_samples=s.num_samples)
        for part in (train, val)
        for s in part.shards
    ]
    manifest = Manifest(
        task=task.name,
        split="trainval",
        class_names=train.class_names,
        source=recorded,
        shards=tuple(shards),
        uri=storage.absolute(uri),
    )
    if not storage.exists(uri) or storage.read_bytes(uri) != manifest.to_bytes():
        storage.write_bytes(uri, manifest.to_bytes())
    return manifest


def _observed(source: Source, split: str, samples_per_shard: int) -> str:
    """A hash over all that can be seen of a split without reading its images."""
    digest = hashlib.sha256(json.dumps([source.layout, source.class_names, samples_per_shard]).encode())
    for sample in source.splits[split]:
        status = os.stat(sample.path)
        digest.update(repr((sample, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _existing(uri: str, observed: str) -> Manifest | None:
    """The manifest that is there, if it was written from the source as it is now and its shards are all in place."""
    note_uri = storage.join(uri, "..", _OBSERVED_NAME)
    if not storage.exists(uri) or not storage.exists(note_uri):
        return None
    try:
        note = json.loads(storage.read_bytes(note_uri))
        manifest = load_manifest(uri)
    except ValueError:
        return None  # not what was written here: it is written again
    if note != {"observed": observed, "manifest_sha256": manifest.sha256}:
        return None
    for shard in manifest.shards:
        shard_uri = manifest.shard_uri(shard)
        if not storage.exists(shard_uri) or storage.size(shard_uri) != shard.bytes:
            return None
    return manifest


def _write_shards(source: Source, split: str, folder: str, samples_per_shard: int) -> tuple[list[Shard], str]:
    """Writes a split's shards; also returns a hash over its samples, whatever shards they are in."""
    shards: list[Shard] = []
    fingerprint = hashlib.sha256(json.dumps(source.class_names).encode())
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hst-shards-") as scratch:
        for index, samples in enumerate(_chunks(source.splits[split], samples_per_shard)):
            name = f"{split}-{index:06d}.tar"
            path = os.path.join(scratch, name)
            with open(path, "wb") as file, TarWriter(file, mtime=0.0) as writer:
                for sample in samples:
                    try:
                        data, member = _image_bytes(sample)
                    except DataError as error:
                        faults.append(str(error))
                        continue
                    fingerprint.update(json.dumps([sample.key, sample.label]).encode())
                    fingerprint.update(hashlib.sha256(data).digest())
                    writer.write({"__key__": sample.key, member: data, "cls": str(sample.label).encode()})
            if not faults:
                storage.copy(path, storage.join(folder, name))
                size, sha256 = os.path.getsize(path), storage.file_sha256(path)
                shards.append(Shard(name=name, bytes=size, sha256=sha256, num_samples=len(samples)))
            os.unlink(path)
    if faults:
        raise DataError(f"{source.uri}: {split} cannot be written", faults)
    return shards, fingerprint.hexdigest()


def _chunks(samples: list[SourceSample], samples_per_shard: int) -> Iterator[list[SourceSample]]:
    """Cuts a split into shards, by number and by size of the images."""
    chunk: list[SourceSample] = []
    size = 0
    for sample in samples:
        image_size = sample.num_bytes
        if chunk and (len(chunk) == samples_per_shard or size + image_size > BYTES_PER_SHARD):
            yield chunk
            chunk, size = [], 0
        chunk.append(sample)
        size += image_size
    if chunk:
        yield chunk


def _image_bytes(sample: SourceSample) -> tuple[bytes, str]:
    """An image file's bytes and the member name of its real format, whatever the file is called."""
    data = sample.read()
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data, "png"
    if data.startswith(b"\xff\xd8\xff"):
        return data, "jpg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data, "webp"
    raise DataError(f"{sample.path}: no PNG, JPEG or WebP image (it begins with {data[:8]!r}); convert or remove it")
