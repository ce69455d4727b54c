"""Raw data as people have it -> labelled image files by split: VTAB-1k lists, folders per class, our own shards.

Everything that is wrong is collected and reported together. Knows nothing of how samples are stored or streamed.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hst.randomness import derive_seed
from pipeline import storage
from pipeline.data.class_folders import is_class_folders, read_class_folders
from pipeline.data.errors import DataError as DataError
from pipeline.data.manifest import SPLITS, Manifest, load_manifest, manifest_uri
from pipeline.data.photo_folders import is_photo_folders, read_photo_folders
from pipeline.data.samples import SourceSample as SourceSample
from pipeline.data.vtab_lists import is_vtab_lists, read_vtab_lists
from pipeline.tasks.catalogue import Task

LAYOUTS = "train800.txt (VTAB-1k lists), train/<class>/ (a folder per class) or train/manifest.json (shards)"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's samples come from."""

    layout: str
    """vtab-lists, class-folders, photo-folders or shards."""
    uri: str
    """The folder that was read."""
    class_names: list[str]
    """By label."""
    splits: dict[str, list[SourceSample]] = field(default_factory=dict)
    """train, val and test; empty where the layout is shards."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """Where the layout is shards: train, val, trainval and test."""
    val_origin: str = ""
    """How val was made where the source has none; empty where it has one."""
    test_origin: str = ""
    """How test was made where the source has none; empty where it has one."""
    subset_reasons: list[str]
    """What differs from the benchmark's full task; empty = comparable with published numbers."""

    def num_samples(self, split: str) -> int:
        """Samples of train, val, trainval or test."""
        if self.manifests:
            return self.manifests[split].num_samples
        return sum(len(self.splits[part]) for part in (("train", "val") if split == "trainval" else (split,)))


def open_source(data_uri: str, task: Task, *, seed: int = 0) -> Source:
    """Finds a task's data and reads what is there, without opening an image.

    Args:
        data_uri: A folder with a folder for the task (or that folder itself), or a root of shards, local or s3://.
            Not looked at where the task has a place of its own.
        task: Says the folder's name and what the full task would have.
        seed: Chooses the tenth of train that becomes val, where the source has no val; for photos without splits also
            the fifth that becomes test.

    Raises:
        DataError: the data is not there (with every place looked at), or something in it is wrong (with every fault).
    """
    looked_at: list[str] = []
    for place in _places(data_uri, task):
        manifests = _manifests(place, task)
        if manifests:
            return _of_shards(place, task, manifests)
        if storage.is_remote(place):
            looked_at.append(f"{place}: has no train/manifest.json (from s3:// only shards are read)")
        elif not os.path.isdir(place):
            looked_at.append(f"{place}: no such folder")
        elif is_vtab_lists(place) or is_class_folders(place) or _is_own_photos(place, task):
            return _of_files(place, task, seed)
        else:
            photos = ", and no folders that are classes (<class>/<image>)" if task.origin else ""
            looked_at.append(f"{place}: has none of {LAYOUTS}{photos}")
    raise DataError(f"{task.name}: no data found; looked at", looked_at)


def subset_reasons(task: Task, num_classes: int, sizes: Mapping[str, int]) -> list[str]:
    """Says how data differs from the benchmark's full task; empty where it does not.

    Args:
        task: What the full task has; classes and sizes that it leaves open are not compared.
        num_classes: In the data.
        sizes: Images of train, val and test in the data.
    """
    reasons = []
    if task.num_classes is not None and num_classes != task.num_classes:
        reasons.append(f"{num_classes} of {task.num_classes} classes")
    full = {"train": task.train_size, "val": task.val_size, "test": task.test_size}
    for split, expected in full.items():
        if expected is not None and sizes[split] != expected:
            reasons.append(f"{split} has {sizes[split]} of {expected} images")
    return reasons


def _places(data_uri: str, task: Task) -> list[str]:
    """Every folder that may be the task's; the root itself only where it bears the task's name."""
    if task.data is not None:
        return [task.data]
    root = storage.absolute(data_uri)
    names = dict.fromkeys([task.folder, task.name])
    places = [storage.join(root, name) for name in names]
    return [root, *places] if os.path.basename(root) in (*names, task.short_name) else places


def _is_own_photos(place: str, task: Task) -> bool:
    """Photos without splits are for users' own tasks: a benchmark has a test of its own, and ours is not comparable."""
    return bool(task.origin) and is_photo_folders(place)


def _class_faults(task: Task, class_names: Sequence[str]) -> list[str]:
    """Why labels would not mean what the task says that they mean."""
    if task.class_names is None or list(class_names) == list(task.class_names):
        return []
    return [
        f"the classes are {_listed(class_names)}, in the order of the labels; class_names ({task.origin}) says "
        f"{_listed(task.class_names)}: mend it, or leave it away"
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")


def _manifests(place: str, task: Task) -> dict[str, Manifest]:
    """The manifests of a folder of shards; none where it is no such folder."""
    uris = {split: manifest_uri(place, ".", split) for split in SPLITS}
    missing = [split for split, uri in uris.items() if not storage.exists(uri)]
    if len(missing) == len(SPLITS):
        return {}
    faults = [f"{split}: no manifest {uris[split]}; the split was not written, or not to its end" for split in missing]
    manifests: dict[str, Manifest] = {}
    for split in SPLITS:
        if split in missing:
            continue
        try:
            manifests[split] = load_manifest(uris[split])
        except DataError as error:
            faults.append(str(error))
            continue
        found = (manifests[split].task, manifests[split].split)
        if found != (task.name, split):
            faults.append(f"{uris[split]}: is of {' '.join(found)}, expected {task.name} {split}")
    if len({manifest.class_names for manifest in manifests.values()}) > 1:
        faults.append("the splits' manifests name different classes")
    if faults:
        raise DataError(f"{task.name}: the shards in {place} cannot be used", faults)
    return manifests


def _of_shards(place: str, task: Task, manifests: dict[str, Manifest]) -> Source:
    class_names = list(manifests["train"].class_names)
    if faults := _class_faults(task, class_names):
        raise DataError(f"{task.name}: the shards in {place} cannot be used", faults)
    sizes = {split: manifest.num_samples for split, manifest in manifests.items()}
    return Source(
        layout="shards",
        uri=place,
        class_names=class_names,
        manifests=manifests,
        val_origin=manifests["val"].source.get("val_origin", ""),
        test_origin=manifests["test"].source.get("test_origin", ""),
        subset_reasons=subset_reasons(task, len(class_names), sizes),
    )


def _of_files(place: str, task: Task, seed: int) -> Source:
    test_origin = ""
    if is_vtab_lists(place):
        layout, listing = "vtab-lists", read_vtab_lists(place, _known_names(task))
    elif is_class_folders(place):
        layout, listing = "class-folders", read_class_folders(place)
    else:
        layout, listing = "photo-folders", read_photo_folders(place, task.name, seed)
        test_origin = f"a stratified fifth of all images, seed {seed}"
    if not listing.faults and len(listing.class_names) < 2:
        listing.faults.append(f"{len(listing.class_names)} class: expected at least 2")
    listing.faults += _class_faults(task, listing.class_names) if not listing.faults else []
    if listing.faults:
        raise DataError(f"{task.name}: the data in {place} cannot be used", listing.faults)
    splits, val_origin = dict(listing.splits), ""
    if "val" not in splits:
        splits["train"], splits["val"] = _split_off_val(listing.splits["train"], task, seed)
        val_origin = f"a stratified tenth of train, seed {seed}"
        if not splits["val"]:
            raise DataError(f"{task.name}: {place} has no val, and no class of train has 2 images to make one from")
    sizes = {split: len(samples) for split, samples in splits.items()}
    return Source(
        layout=layout,
        uri=place,
        class_names=listing.class_names,
        splits=splits,
        val_origin=val_origin,
        test_origin=test_origin,
        subset_reasons=subset_reasons(task, len(listing.class_names), sizes),
    )


def _known_names(task: Task) -> Sequence[str] | None:
    """The classes as the task says them: names, else numbers; None where it leaves them to the data."""
    if task.class_names is not None or task.num_classes is None:
        return task.class_names
    return [str(label) for label in range(task.num_classes)]


def _split_off_val(
    train: Iterable[SourceSample], task: Task, seed: int
) -> tuple[list[SourceSample], list[SourceSample]]:
    """A tenth of each class (at least one image of a class with two), drawn by seed; both in the order they had."""
    by_label: dict[int, list[SourceSample]] = defaultdict(list)
    for sample in train:
        by_label[sample.label].append(sample)
    val: set[str] = set()
    for samples in by_label.values():
        count = max(1, round(len(samples) / 10)) if len(samples) > 1 else 0
        drawn = sorted(samples, key=lambda sample: derive_seed(seed, task.name, "val", sample.key))
        val.update(sample.key for sample in drawn[:count])
    return [s for s in train if s.key not in val], [s for s in train if s.key in val]
