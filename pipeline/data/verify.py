"""Reads every byte of written shards again and, if people allow it, leaves out damaged samples."""

import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.data.annotations.annotation import Annotation, annotation_of
from pipeline.data.errors import DataError
from pipeline.data.images import IMAGE_MEMBERS, check_decodes
from pipeline.data.prepare import trainval_of, write_manifest, write_trainval
from pipeline.data.shards.index import Index, IndexEntry, index_bytes, load_index
from pipeline.data.shards.manifest import OWN_SPLITS, Manifest, Shard, load_manifest, manifest_uri
from pipeline.data.shards.reader import EncodedSample, samples_of
from pipeline.data.shards.writer import MAX_THREADS
from pipeline.storage import files


class DamagedError(DataError):
    """More of the shards is damaged than may be left out.

    `enough` is the number of faults that would have to be allowed; None if a split would be left empty.
    """

    def __init__(self, message: str, faults: Sequence[str], *, enough: int | None) -> None:
        super().__init__(message, faults)
        self.enough = enough


@dataclass
class ShardReport:
    """What one shard holds."""

    found: Shard | None
    """The tar as it is, counting its whole samples; None if there is no such file or it has no whole sample."""
    kept: list[IndexEntry] = field(default_factory=list)
    """The whole samples."""
    faults: list[str] = field(default_factory=list)
    """One for each lost sample, or a single one if only the tar differs and all samples are whole."""
    loses_samples: bool = True
    """Whether the faults are lost samples, not a difference of the tar alone."""


def verify_split(manifest: Manifest, *, progress: Callable[[int], None] | None = None) -> list[ShardReport]:
    """Compares every shard with its manifest and every sample with the index, and decodes every image.

    Args:
        manifest: The split's manifest.
        progress: Called after each shard with its number of samples.

    Returns:
        What each shard holds, in the manifest's order. If no report has a fault, nothing is damaged.

    Raises:
        DataError: The index is missing or does not match the manifest.
    """
    index = load_index(manifest)
    by_shard: list[list[IndexEntry]] = [[] for _ in manifest.shards]
    for entry, number in zip(index.entries, index.shards.tolist(), strict=True):
        by_shard[number].append(entry)

    uris = [manifest.shard_uri(shard) for shard in manifest.shards]
    reports = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
        annotations = [annotation_of(manifest.annotation)] * len(uris)
        found = pool.map(_report, uris, manifest.shards, by_shard, annotations)
        for report, entries in zip(found, by_shard, strict=True):
            reports.append(report)
            if progress is not None:
                progress(len(entries))
    return reports


def verify_task(
    shards_uri: str, task: str, *, max_dropped: int = 0, progress: Callable[[int], None] | None = None
) -> tuple[dict[str, Manifest], list[str]]:
    """Verifies all splits of a task.

    Args:
        shards_uri: Root of the shards.
        task: The task's full name.
        max_dropped: Number of damaged samples that may be left out. The index and the manifest are then written without
            them, and the manifest records their keys; the tars stay as they are. More are an error.
        progress: Called after each shard with its number of samples.

    Returns:
        The manifests of all four splits, and a sentence for each fault that says what was done about it.

    Raises:
        DamagedError: More is damaged than may be left out.
        DataError: A split is missing.
    """
    manifests = {split: load_manifest(manifest_uri(shards_uri, task, split)) for split in OWN_SPLITS}
    reports = {split: verify_split(manifest, progress=progress) for split, manifest in manifests.items()}
    done = {
        fault: f"{'left out' if report.loses_samples else 'the manifest now says so'}: {fault}"
        for split in OWN_SPLITS
        for report in reports[split]
        for fault in report.faults
    }
    trainval = trainval_of(manifests["train"], manifests["val"])
    if not files.exists(trainval.uri) or files.read_bytes(trainval.uri) != trainval.to_bytes():
        fault = f"{trainval.uri}: does not name the shards of train and val as they are"
        done[fault] = f"written again: {fault}"
    faults = list(done)
    if not faults:
        return {**manifests, "trainval": trainval}, []
    lost = [split for split in OWN_SPLITS if not any(report.kept for report in reports[split])]
    if lost:
        raise DamagedError(f"{task}: nothing of {' and '.join(lost)} in {shards_uri} is whole", faults, enough=None)
    if len(faults) > max_dropped:
        allowed = f" ({len(faults)} faults, {max_dropped} may be left out)" if max_dropped else ""
        raise DamagedError(f"{task}: the shards in {shards_uri} are damaged{allowed}", faults, enough=len(faults))
    for split, manifest in manifests.items():
        if any(report.faults for report in reports[split]):
            manifests[split] = _without_lost(manifest, load_index(manifest), reports[split])
    return {**manifests, "trainval": write_trainval(manifests["train"], manifests["val"])}, list(done.values())


def _report(uri: str, shard: Shard, entries: list[IndexEntry], annotation: Annotation) -> ShardReport:
    try:
        tar = files.read_bytes(uri)
    except FileNotFoundError:
        lost = f"{uri}: no such shard; its {shard.num_samples} samples are lost"
        return ShardReport(None, [], [lost, *(f"{uri}: sample {entry.key!r} is lost" for entry in entries[1:])])
    result = ShardReport(None)
    for entry in entries:
        try:
            data = tar[entry.offset : entry.offset + entry.length]
            (sample,) = samples_of(uri, [entry], data)
            _check_members(sample, data, annotation)
            check_decodes(sample.image)
        except DataError as error:
            result.faults.append(str(error))
        except ValueError as error:
            result.faults.append(f"{uri}: sample {entry.key!r}: {error}")
        else:
            result.kept.append(entry)
    sha256 = hashlib.sha256(tar).hexdigest()
    if (len(tar), sha256) != (shard.bytes, shard.sha256) and not result.faults:
        result.faults.append(
            f"{uri}: its {len(tar)} bytes have the sha256 {sha256}, its manifest says {shard.bytes} bytes and "
            f"{shard.sha256}; every sample of it is whole"
        )
        result.loses_samples = False
    if result.kept:
        result.found = dataclasses.replace(shard, bytes=len(tar), sha256=sha256, num_samples=len(result.kept))
    return result


def _check_members(sample: EncodedSample, data: bytes, annotation: Annotation) -> None:
    """Compares what the index says about a sample with what programs that read the tar without it would find.

    The two differ if index and tar were not written together.
    """
    where = f"{sample.shard}: sample {sample.key!r}"
    try:
        found = list(group_by_keys(tar_file_expander([{"url": sample.shard, "stream": io.BytesIO(data)}])))
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{where}: not of a readable WebDataset tar ({error.args[0] if error.args else error})"
        ) from error
    keys = [members["__key__"] for members in found]
    if keys != [sample.key]:
        raise DataError(f"{where}: the tar has {', '.join(map(repr, keys)) or 'nothing'} in its place")
    images = [found[0][name] for name in IMAGE_MEMBERS if name in found[0]]
    if len(images) != 1:
        raise DataError(f"{where}: has {len(images)} images, expected one of {', '.join(IMAGE_MEMBERS)}")
    if images != [sample.image]:
        raise DataError(f"{where}: its index says that its image is in another place")
    for name, expected in annotation.members(sample.label).items():
        if found[0].get(name) != expected:
            raise DataError(f"{where}: its label ({name}) is {found[0].get(name)!r}, its index says {sample.label}")


def _without_lost(manifest: Manifest, index: Index, reports: list[ShardReport]) -> Manifest:
    """Writes the split's index and manifest with the whole samples only."""
    kept = [entry for report in reports for entry in report.kept]
    lost = {entry.key for entry in index.entries} - {entry.key for entry in kept}
    source = {**manifest.source, "skipped": sorted({*manifest.source.get("skipped", ()), *lost})}
    shards = tuple(report.found for report in reports if report.found is not None)
    return write_manifest(dataclasses.replace(manifest, source=source, shards=shards), index_bytes(kept))
