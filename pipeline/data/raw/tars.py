"""The layout of clip_benchmark's and open_clip's WebDatasets: a folder of tars a split, local or remote.

    <split>/nshards.txt (or shards.txt), <split>/0.tar, ...     train, test, and val if there is one
    classnames.txt                                              if there is one, a name a line
    keys/<split>.txt                                            if only some samples are meant: their keys, in order

Key lists are how a benchmark's small splits are taken from a whole data set: `keys/val.txt` names samples of val's tars
where there are such, and of train's where there are none. A remote tar is copied into the cache and read there.
"""

import os
from collections.abc import Sequence
from functools import cache

from pipeline.data.raw.shard_names import COUNT, NAMES, has_shard_names, read_shard_names
from pipeline.data.raw.tar_samples import TarSample, read_tar
from pipeline.data.raw.text_lists import read_class_names, read_lines
from pipeline.data.samples import Listing, Root, SourceSample, sample_key
from pipeline.data.shards.manifest import OWN_SPLITS
from pipeline.storage import files
from pipeline.tasks.catalogue import Task

# A sample and its tar, a local file, by the sample's key.
Pool = dict[str, tuple[TarSample, str]]


def is_tars(folder: str) -> bool:
    """Whether a split says which its tars are; or train has tars, and the list is missing."""
    return any(has_shard_names(folder, split) for split in OWN_SPLITS) or _has_tars(folder, "train")


def read_tars(folder: str, task: Task, splits: Sequence[str]) -> Listing:
    """Reads the headers of every tar of these splits, and the labels.

    Args:
        folder: The task's folder, local or remote.
        task: Whose classes count where classnames.txt is missing. If the benchmark has a certain number of
            images in train and val, tars with another number of them need key lists.
        splits: Of train, val and test.
    """
    listing = Listing()
    faults = listing.faults
    listing.class_names = read_class_names(folder, task.class_names_in(folder), faults)
    pools: dict[str, Pool] = {}
    for split in splits:
        if has_shard_names(folder, split):
            pools[split] = _read_pool(folder, split, len(listing.class_names), faults)
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
                SourceSample(sample_key(split, i, key), pool[key][1], pool[key][0].label, span=pool[key][0].span)
                for i, key in enumerate(keys)
            ]
    _check_sizes(folder, task, listing)
    _check_overlap(listing)
    return listing


def _read_pool(folder: str, split: str, num_classes: int, faults: list[str]) -> Pool:
    """Every sample of a split's tars."""
    pool: Pool = {}
    before = len(faults)
    for name in read_shard_names(folder, split, faults):
        where = f"{split}/{name}"
        try:
            path = _local(folder, where)
        except (ValueError, FileNotFoundError) as error:
            faults.append(f"{where}: {error}")
            continue
        for sample in read_tar(path, where, faults):
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
    """The tar as a local file; raises ValueError or FileNotFoundError where there is none."""
    if not files.is_remote(folder):
        return Root(folder).resolve(relative_path)
    uri = files.join(folder, relative_path)
    return _fetched(uri, files.size(uri))


@cache
def _fetched(uri: str, size: int) -> str:
    """Copies an object into the cache, once a process: a task's data is opened several times, and is the same then."""
    path = str(files.fetch(uri))
    # The path has the content's sha256 in it; the date of the copy would make the same data look changed.
    os.utime(path, (0, 0))
    return path


def _has_tars(folder: str, split: str) -> bool:
    place = os.path.join(folder, split)
    local = not files.is_remote(folder) and os.path.isdir(place)
    return local and any(name.endswith(".tar") for name in os.listdir(place))


def _read_keys(folder: str, split: str, pool: Pool, faults: list[str]) -> list[str] | None:
    """The keys that keys/<split>.txt lists; None where there is no such list."""
    where = f"keys/{split}.txt"
    if not files.exists(files.join(folder, where)):
        return None
    first_line: dict[str, int] = {}
    before = len(faults)
    for number, line in enumerate(read_lines(files.join(folder, where), faults), 1):
        key = line.strip()
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
    """Which 800 + 200 images of a whole data set a benchmark means is nothing to guess."""
    if listing.faults or task.train_size is None or task.val_size is None:
        return
    for split, expected in (("train", task.train_size), ("val", task.val_size)):
        size = len(listing.splits.get(split, []))
        if size != expected and not files.exists(files.join(folder, f"keys/{split}.txt")):
            listing.faults.append(
                f"{split}: has {size} samples, and {task.name} {expected} certain ones of them; "
                f"list their keys in keys/{split}.txt, one a line"
            )


def _check_overlap(listing: Listing) -> None:
    """An image in two splits would be trained on and tested on."""
    split_of: dict[tuple[str, tuple[int, int] | None], str] = {}
    for split, samples in listing.splits.items():
        for sample in samples:
            other = split_of.setdefault((sample.path, sample.span), split)
            if other != split:
                listing.faults.append(f"{split}: {sample.key} is in {other} too; mend keys/{split}.txt or {other}.txt")
