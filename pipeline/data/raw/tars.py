"""The layout of clip_benchmark's and open_clip's WebDatasets: one folder of tars per split, local or remote.

    <split>/nshards.txt (or shards.txt), <split>/0.tar, ...     train, test, and optionally val
    classnames.txt                                              optional: one name per line
    keys/<split>.txt                                            optional: the keys of the samples to use, in order

Key lists select a benchmark's small splits from a whole data set. `keys/val.txt` names samples of val's tars or, if val
has no tars, of train's. A remote tar is copied into the cache and read there.
"""

import os
from collections.abc import Sequence
from functools import cache

from pipeline.data.raw.left_aside import is_hidden
from pipeline.data.raw.shard_names import COUNT, NAMES, has_shard_names, read_shard_names
from pipeline.data.raw.tar_samples import TarSample, read_tar
from pipeline.data.raw.text_lists import read_class_names, read_lines
from pipeline.data.samples import Listing, Root, SourceSample, sample_key
from pipeline.data.shards.manifest import OWN_SPLITS
from pipeline.storage import files
from pipeline.tasks.catalogue import Task

# Key of a sample -> the sample and the local path of its tar.
Pool = dict[str, tuple[TarSample, str]]


def is_tars(folder: str) -> bool:
    """Whether a split lists its tars, or train has tars without a list (which is then a fault)."""
    return any(has_shard_names(folder, split) for split in OWN_SPLITS) or _has_tars(folder, "train")


def read_tars(folder: str, task: Task, splits: Sequence[str]) -> Listing:
    """Reads the headers and labels in every tar of these splits.

    Args:
        folder: The task's folder, local or remote.
        task: Gives the class names if classnames.txt is missing. If it prescribes the sizes of train and val, tars of
            other sizes need key lists.
        splits: Splits to read, from train, val and test.
    """
    listing = Listing()
    faults = listing.faults
    listing.class_names = read_class_names(folder, task.class_names_in(folder), faults)
    pools: dict[str, Pool] = {}
    for split in splits:
        if has_shard_names(folder, split):
            pools[split] = _read_pool(folder, split, listing)
        elif _has_tars(folder, split):
            faults.append(f"{split}/: has tars, and no {COUNT} (how many), {NAMES} (which) or manifest of ours")
        elif split != "val":
            faults.append(f"{split}/: has neither {COUNT} nor {NAMES}")
    if faults:
        return listing
    for split in splits:
        pool = pools.get(split, pools["train"])
        keys = _read_keys(folder, split, pool, faults)
        if keys is None and split in pools:
            keys = list(pool)
        if keys is not None:
            listing.splits[split] = [
                SourceSample(sample_key(split, i, f"{key}."), pool[key][1], pool[key][0].label, span=pool[key][0].span)
                for i, key in enumerate(keys)
            ]
    _check_sizes(folder, task, listing)
    _check_overlap(listing)
    return listing


def _read_pool(folder: str, split: str, listing: Listing) -> Pool:
    """Every sample of a split's tars."""
    pool: Pool = {}
    faults, num_classes = listing.faults, len(listing.class_names)
    before = len(faults)
    for name in read_shard_names(folder, split, faults):
        where = f"{split}/{name}"
        try:
            path = _local(folder, where)
        except (ValueError, FileNotFoundError) as error:
            faults.append(f"{where}: {error}")
            continue
        for sample in read_tar(path, where, listing):
            if sample.key in pool:
                faults.append(f"{where}: sample {sample.key!r} stands in {os.path.basename(pool[sample.key][1])} too")
            if not 0 <= sample.label < num_classes:
                faults.append(
                    f"{where}: sample {sample.key!r}: label {sample.label} is out of range; "
                    f"{num_classes} classes: 0 to {num_classes - 1}"
                )
            pool[sample.key] = (sample, path)
    if not pool and len(faults) == before:
        faults.append(f"{split}/: its tars hold no sample")
    return pool


def _local(folder: str, relative_path: str) -> str:
    """Local path of the tar; raises ValueError or FileNotFoundError if it cannot be used or does not exist."""
    if not files.is_remote(folder):
        return Root(folder).resolve(relative_path)
    uri = files.join(folder, relative_path)
    return _fetched(uri, files.size(uri))


@cache
def _fetched(uri: str, size: int) -> str:
    """Copies an object into the cache, once per process: a task's data is opened several times."""
    path = str(files.fetch(uri))
    # The path contains the content's sha256; with the date of the copy, the same data would look changed.
    os.utime(path, (0, 0))
    return path


def _has_tars(folder: str, split: str) -> bool:
    place = os.path.join(folder, split)
    local = not files.is_remote(folder) and os.path.isdir(place)
    return local and any(name.endswith(".tar") and not is_hidden(name) for name in os.listdir(place))


def _read_keys(folder: str, split: str, pool: Pool, faults: list[str]) -> list[str] | None:
    """The keys in keys/<split>.txt; None if the file does not exist."""
    where = f"keys/{split}.txt"
    if not files.exists(files.join(folder, where)):
        return None
    first_line: dict[str, int] = {}
    before = len(faults)
    for number, line in enumerate(read_lines(folder, where, faults), 1):
        key = line.strip()
        key = key if key in pool else key.replace("\\", "/")  # as in lists: see `Root`
        if not key:
            continue
        if key not in pool:
            faults.append(f"{where}:{number}: no tar of the split has a sample {key!r}")
        elif key in first_line:
            faults.append(f"{where}:{number}: {key!r} stands in line {first_line[key]} already")
        first_line.setdefault(key, number)
    if not first_line and len(faults) == before:
        faults.append(f"{where}: lists no sample")
    return [key for key in first_line if key in pool]


def _check_sizes(folder: str, task: Task, listing: Listing) -> None:
    """Adds a fault if the sizes are not the benchmark's and there are no key lists: we cannot guess its images."""
    if listing.faults or task.train_size is None or task.val_size is None:
        return
    for split, expected in (("train", task.train_size), ("val", task.val_size)):
        size = len(listing.splits.get(split, []))
        if size != expected and not files.exists(files.join(folder, f"keys/{split}.txt")):
            listing.faults.append(
                f"{split}: has {size} samples, but {task.name} uses {expected} particular ones; "
                f"list their keys in keys/{split}.txt, one a line"
            )


def _check_overlap(listing: Listing) -> None:
    """Adds a fault for each image in two splits: it would be used both to train and to test."""
    split_of: dict[tuple[str, tuple[int, int] | None], str] = {}
    for split, samples in listing.splits.items():
        for sample in samples:
            other = split_of.setdefault((sample.path, sample.span), split)
            if other != split:
                listing.faults.append(f"{split}: {sample.key} is in {other} too; mend keys/{split}.txt or {other}.txt")
