"""Writes a source's splits as shards. Each split also gets an index and, last, a manifest.

A split is written again only if its source changed. To see that without reading every image, `source.json` beside the
manifest keeps a hash of the files' names, sizes and dates. Two processes may write a task's shards from one source at
the same time: they write the same bytes. Nothing protects against two processes that write from different sources.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pipeline.data.errors import DataError
from pipeline.data.shards.index import index_bytes
from pipeline.data.shards.manifest import INDEX_NAME, SPLITS, IndexFile, Manifest, Shard, load_manifest, manifest_uri
from pipeline.data.shards.writer import (
    MAX_THREADS,
    PlannedShard,
    Progress,
    WrittenShard,
    delete_records,
    observe,
    plan_shards,
    write_shards,
)
from pipeline.data.sources import Source, open_source
from pipeline.storage import files
from pipeline.tasks.catalogue import Task

SAMPLES_PER_SHARD = 1000
_OBSERVED_NAME = "source.json"


def prepare_task(
    task: Task, data_uri: str, shards_uri: str, *, seed: int = 0, without_test: bool = False, **how: Any
) -> dict[str, Manifest]:
    """Writes a task's data as shards, unless up-to-date shards exist.

    Args:
        task: The task.
        data_uri: Raw data, or a root of shards, which is used as it is.
        shards_uri: See `prepare_source`.
        seed: Seed that chooses val if the source has none.
        without_test: Write only train and val, as `open_source` reads them.
        **how: Further arguments of `prepare_source`.

    Returns:
        See `prepare_source`.

    Raises:
        DataError: The source is missing or faulty. Then no manifest remains that would be used.
    """
    source = open_source(data_uri, task, seed=seed, without_test=without_test)
    return prepare_source(source, task, shards_uri, **how)


def prepare_source(
    source: Source,
    task: Task,
    shards_uri: str,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    max_skipped: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Writes an opened source as shards, unless up-to-date shards exist.

    Args:
        source: What `open_source` found. Without test, only train and val are written; a later call with test adds test
            and trainval to the same shards.
        task: The task.
        shards_uri: Root of the shards to write: <root>/<task>/<split>/.
        samples_per_shard: Most samples in a shard; a shard also ends at 128 MiB. Existing shards are not cut again.
        max_skipped: Number of the task's images that may be left out because they cannot be decoded. The manifest
            records each. More are an error; by default, a single one is.
        threads: Number of shards written at a time; None means one per processor, at most MAX_THREADS.
        progress: Called with (samples written, samples to write).

    Returns:
        The manifests of train, val and, unless test is left out, trainval and test. Trainval lists the shards of train
        and val, and adds no bytes.

    Raises:
        DataError: An image cannot be written. Then no manifest remains that would be used.
    """
    if source.manifests:
        return source.manifests
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}: expected at least 1")
    _check_apart(source, files.join(shards_uri, task.name))
    observed = {split: _observed(source, split) for split in source.splits}
    manifests = {
        split: manifest
        for split in observed
        if (manifest := _existing(manifest_uri(shards_uri, task.name, split), observed[split])) is not None
        and manifest.annotation == task.annotation
    }
    before = _skipped_before(task, shards_uri, manifests, max_skipped)
    missing = [split for split in observed if split not in manifests]
    planned = {split: _planned(task, source, split, shards_uri, samples_per_shard) for split in missing}
    in_turn = [shard for shards in planned.values() for shard in shards]
    results = write_shards(in_turn, threads=threads or min(MAX_THREADS, os.cpu_count() or 1), progress=progress)
    written = {split: list(islice(results, len(shards))) for split, shards in planned.items()}
    _check_skipped(task, source, written, max_skipped, before)
    for split in missing:
        manifests[split] = _write_split(task, source, split, shards_uri, written[split], observed[split])
    if "test" in source.splits:  # without trainval a folder is no whole task, even if an earlier call left test there
        manifests["trainval"] = write_trainval(manifests["train"], manifests["val"])
    return {split: manifests[split] for split in SPLITS if split in manifests}


def _skipped_before(task: Task, shards_uri: str, manifests: Mapping[str, Manifest], max_skipped: int) -> int:
    """How many images existing shards lack; DataError where that is more than allowed now."""
    before = [key for manifest in manifests.values() for key in manifest.source.get("skipped", ())]
    if len(before) > max_skipped:
        raise DataError(
            f"{task.name}: the shards in {shards_uri} lack {len(before)} images that could not be decoded; "
            f"{max_skipped} are allowed now: mend them, allow as many (`jobs/write_shards.py --max-skipped "
            f"{len(before)}`), or name the shards themselves as the data",
            before,
        )
    return len(before)


def _planned(task: Task, source: Source, split: str, shards_uri: str, samples_per_shard: int) -> list[PlannedShard]:
    """The shards to write for a split, whose manifest goes first."""
    # A split without a manifest does not exist, so nobody reads a mixture of old and new shards.
    for other in (split, "trainval") if split in ("train", "val") else (split,):
        files.delete(manifest_uri(shards_uri, task.name, other))
    return plan_shards(
        source.splits[split],
        folder=files.join(manifest_uri(shards_uri, task.name, split), ".."),
        split=split,
        annotation=task.annotation,
        samples_per_shard=samples_per_shard,
    )


def discard_task(shards_uri: str, task: str) -> None:
    """Removes a task's manifests and records, so that `prepare_task` writes every shard again."""
    for split in SPLITS:
        uri = manifest_uri(shards_uri, task, split)
        files.delete(uri)
        delete_records(files.join(uri, ".."))


def _check_apart(source: Source, target: str) -> None:
    """Refuses to write shards into the source's folder.

    Their names might be those of source files, and `prepare_task` removes leftover tars there.
    """
    place = source.uri
    if not files.is_remote(place) and not files.is_remote(target):
        place, target = os.path.realpath(place), os.path.realpath(target)
    if f"{place}/".startswith(f"{target}/"):
        raise DataError(f"the raw data is in {place}, where its shards would be written; write them elsewhere")


def trainval_of(train: Manifest, val: Manifest) -> Manifest:
    """The manifest that lists the shards of train and val; its folder is beside theirs."""
    recorded: dict[str, Any] = {
        "layout": train.source["layout"],
        "fingerprints": [part.source["fingerprint"] for part in (train, val)],
    }
    recorded |= {name: val.source[name] for name in ("val_origin", "test_origin") if name in val.source}
    if skipped := [skip for part in (train, val) for skip in part.source.get("skipped", ())]:
        recorded["skipped"] = skipped
    return Manifest(
        task=train.task,
        split="trainval",
        class_names=train.class_names,
        source=recorded,
        shards=tuple(
            dataclasses.replace(shard, name=f"../{part.split}/{shard.name}")
            for part in (train, val)
            for shard in part.shards
        ),
        indexes=tuple(
            dataclasses.replace(file, name=f"../{part.split}/{file.name}")
            for part in (train, val)
            for file in part.indexes
        ),
        annotation=train.annotation,
        uri=files.join(train.uri, "../../trainval", os.path.basename(train.uri)),
    )


def write_trainval(train: Manifest, val: Manifest) -> Manifest:
    """Writes `trainval_of` the two, unless it exists already."""
    manifest = trainval_of(train, val)
    if not files.exists(manifest.uri) or files.read_bytes(manifest.uri) != manifest.to_bytes():
        files.write_bytes(manifest.uri, manifest.to_bytes())
    return manifest


def _check_skipped(
    task: Task, source: Source, written: Mapping[str, Sequence[WrittenShard]], max_skipped: int, before: int
) -> None:
    """Raises DataError if too many images were left out; `before` counts those left out of existing splits."""
    skipped = [skip.reason for shards in written.values() for shard in shards for skip in shard.skipped]
    if before + len(skipped) > max_skipped:
        found = f"{len(skipped)} images in {source.uri}" if len(skipped) > 1 else f"an image in {source.uri}"
        allowed = f" ({max_skipped} may be left out)" if max_skipped else ""
        raise DataError(
            f"{task.name}: {found} cannot be written to shards{allowed}; mend or remove what is named here, or "
            f"leave it out by `jobs/write_shards.py --max-skipped {before + len(skipped)}` and train on its shards",
            skipped,
        )
    empty = [split for split, shards in written.items() if not any(shard.shard for shard in shards)]
    if empty:
        raise DataError(f"{task.name}: no image of {' and '.join(empty)} in {source.uri} could be used", skipped)


def _write_split(
    task: Task, source: Source, split: str, shards_uri: str, written: Sequence[WrittenShard], observed: str
) -> Manifest:
    """Writes the index and the manifest of shards that are in place."""
    uri = manifest_uri(shards_uri, task.name, split)
    folder = files.join(uri, "..")
    shards = [shard.shard for shard in written if shard.shard is not None]
    for name in set(files.list_prefix(folder)) - {shard.name for shard in shards}:
        if name.endswith(".tar"):  # left from an earlier, longer split; tools that read *.tar would include it
            files.delete(files.join(folder, name))
    entries = [entry for shard in written for entry in shard.entries]
    samples = [[entry.key, entry.label, entry.sha256] for entry in entries]
    recorded: dict[str, Any] = {
        "layout": source.layout,
        # The fingerprint depends on the samples, not on how they are cut into shards.
        "fingerprint": hashlib.sha256(json.dumps([source.class_names, samples]).encode()).hexdigest(),
    }
    if source.val_origin and split in ("train", "val"):
        recorded["val_origin"] = source.val_origin
    if source.test_origin:  # recorded in every split: all others are what test left over
        recorded["test_origin"] = source.test_origin
    if skipped := [skip.key for shard in written for skip in shard.skipped]:
        recorded["skipped"] = skipped
    manifest = write_manifest(
        Manifest(
            task=task.name,
            split=split,
            class_names=tuple(source.class_names),
            source=recorded,
            shards=tuple(shards),
            indexes=(),
            annotation=task.annotation,
            uri=uri,
        ),
        index_bytes(entries),
    )
    note = {"observed": observed, "manifest_sha256": manifest.sha256}
    files.write_bytes(files.join(folder, _OBSERVED_NAME), json.dumps(note).encode())
    delete_records(folder)
    return manifest


def write_manifest(manifest: Manifest, index: bytes) -> Manifest:
    """Writes a split's index and then its manifest, which names it."""
    files.write_bytes(files.join(manifest.uri, "..", INDEX_NAME), index)
    named = IndexFile(name=INDEX_NAME, sha256=hashlib.sha256(index).hexdigest())
    manifest = dataclasses.replace(manifest, indexes=(named,), uri=files.absolute(manifest.uri))
    files.write_bytes(manifest.uri, manifest.to_bytes())
    return manifest


def _observed(source: Source, split: str) -> str:
    """A hash of everything that can be seen of a split without reading its images."""
    seen = [source.layout, source.class_names, observe(source.splits[split])]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _existing(uri: str, observed: str) -> Manifest | None:
    """The existing manifest, if it was written from the source as it is now and all files that it names exist."""
    note_uri = files.join(uri, "..", _OBSERVED_NAME)
    if not files.exists(uri) or not files.exists(note_uri):
        return None
    try:
        note = json.loads(files.read_bytes(note_uri))
        manifest = load_manifest(uri)
    except (DataError, json.JSONDecodeError):
        return None  # not what this module writes: the split is written again
    if note != {"observed": observed, "manifest_sha256": manifest.sha256}:
        return None
    index = files.join(uri, "..", INDEX_NAME)
    if not files.exists(index) or hashlib.sha256(files.read_bytes(index)).hexdigest() != manifest.indexes[0].sha256:
        return None
    return manifest if all(_is_in_place(manifest, shard) for shard in manifest.shards) else None


def _is_in_place(manifest: Manifest, shard: Shard) -> bool:
    uri = manifest.shard_uri(shard)
    return files.exists(uri) and files.size(uri) == shard.bytes
