"""Finds the labelled images of each split in raw data (the layouts of `pipeline.data.raw.layouts`) or in shards.

All faults are collected and reported together. This module does not know how samples are stored or streamed.
"""

import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hst.randomness import derive_seed
from pipeline.data.annotations.annotation import annotation_of
from pipeline.data.errors import DataError as DataError
from pipeline.data.raw.class_folders import subfolders
from pipeline.data.raw.label_map import apply_label_map
from pipeline.data.raw.layouts import LAYOUTS, Layout
from pipeline.data.raw.left_aside import left_aside_notes
from pipeline.data.samples import SourceSample as SourceSample
from pipeline.data.shards.manifest import OWN_SPLITS, SPLITS, Manifest, load_manifest, manifest_uri
from pipeline.storage import files
from pipeline.tasks.catalogue import Task
from pipeline.tasks.class_names import class_name, name_faults

SHARDS = "train/manifest.json (shards)"
SPLIT_SEED = 0
"""Seed with which all jobs draw a missing val or test, so that runs with other seeds use the same images."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's samples come from."""

    layout: str
    """A name of `pipeline.data.raw.layouts`, or shards."""
    uri: str
    """The folder that was read."""
    class_names: list[str]
    """Name of each class, by label."""
    splits: dict[str, list[SourceSample]] = field(default_factory=dict)
    """The samples of train, val and, unless it was left out, test; empty if the layout is shards."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """If the layout is shards: the manifests of train, val and, unless test was left out, trainval and test."""
    val_origin: str = ""
    """How val was made if the source has none; empty if it has one."""
    test_origin: str = ""
    """How test was made if the source has none; empty if it has one."""
    notes: list[str] = field(default_factory=list)
    """What people should know of the folder, a sentence each: what was left aside in it."""
    subset_reasons: list[str]
    """How the data differs from the benchmark's full task; empty = comparable with published numbers."""

    def num_samples(self, split: str) -> int:
        """Number of samples of train, val, trainval or test."""
        parts = ("train", "val") if split == "trainval" else (split,)
        if self.manifests:
            return sum(self.manifests[part].num_samples for part in parts)
        return sum(len(self.splits[part]) for part in parts)


def open_source(data_uri: str, task: Task, *, seed: int = 0, without_test: bool = False) -> Source:
    """Finds a task's data and lists its samples, without opening an image.

    Args:
        data_uri: A folder with a folder for the task (or that folder itself), local or remote. It is ignored if the
            task names its own place.
        task: Names the folder, and says what the full task has.
        seed: If the source has no val, chooses the tenth of train that becomes val; for photos without splits also the
            fifth that becomes test.
        without_test: Read only train and val, which are the same as with test. Test need not exist and nothing of it is
            opened, except a list or table that holds all splits, and the names of photos without splits.

    Raises:
        DataError: The data is missing (with every place looked at), or something in it is wrong (with every fault).
        FileNotFoundError: The bucket that should hold the data does not exist.
    """
    splits = ("train", "val") if without_test else OWN_SPLITS
    looked_at: list[str] = []
    for place in _places(data_uri, task):
        manifests = _manifests(place, task, splits if without_test else SPLITS)
        if manifests:
            return _of_shards(place, task, manifests)
        remote = files.is_remote(place)
        if not remote and not os.path.isdir(place):
            looked_at.append(f"{place}: no such folder")
            continue
        possible = [layout for layout in LAYOUTS if (layout.is_remote or not remote) and layout.is_for(task)]
        found = next((layout for layout in possible if layout.is_there(place)), None)
        if found:
            return _of_layout(found, place, task, seed, splits)
        files.check_bucket(place)
        looked_at.append(f"{place}: {_nothing_known(place, task, possible)}")
    raise DataError(f"{task.name}: no data found; looked at", looked_at)


def subset_reasons(task: Task, num_classes: int, sizes: Mapping[str, int]) -> list[str]:
    """Says how data differs from the benchmark's full task; empty if it does not.

    Args:
        task: Says what the full task has. Classes and sizes that it leaves open are not compared.
        num_classes: Number of classes in the data.
        sizes: Number of images of train, val and, unless it was left out, test in the data.
    """
    reasons = []
    if task.num_classes is not None and num_classes != task.num_classes:
        reasons.append(f"{num_classes} of {task.num_classes} classes")
    full = {"train": task.train_size, "val": task.val_size, "trainval": task.trainval_size, "test": task.test_size}
    counted = {**sizes, "trainval": sizes["train"] + sizes["val"]}
    for split, expected in full.items():
        if expected is not None and split in counted and counted[split] != expected:
            reasons.append(f"{split} has {counted[split]} of {expected} images")
    return reasons


def _places(data_uri: str, task: Task) -> list[str]:
    """Every folder that may be the task's; the root itself only if it has the task's name."""
    if task.data is not None:
        return [task.data]
    root = files.absolute(data_uri, reading=True)
    names = dict.fromkeys([task.folder, task.name, *task.other_folders])
    places = [files.join(root, name) for name in names]
    return [root, *places] if os.path.basename(root) in (*names, task.short_name) else places


def _nothing_known(place: str, task: Task, possible: Sequence[Layout]) -> str:
    """Why an existing folder has no known layout. For a user's own task, the likeliest reason comes first."""
    signs = ", ".join([*(layout.sign for layout in possible), SHARDS])
    if task.origin and not files.is_remote(place) and not subfolders(place):
        return f"no class folders in it: <folder>/<class>/<image> is expected (or one of {signs})"
    local = "; other layouts can only be read from a local folder" if files.is_remote(place) else ""
    return f"has none of {signs}{local}"


def _class_faults(task: Task, class_names: Sequence[str]) -> list[str]:
    """Why labels would not mean what the task says they mean."""
    if task.class_names is None or [*map(class_name, class_names)] == [*map(class_name, task.class_names)]:
        return []
    return [
        f"the classes are {_listed(class_names)}, in the order of the labels; class_names ({task.origin}) says "
        f"{_listed(task.class_names)}: correct it or remove it"
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")


def _manifests(place: str, task: Task, splits: Sequence[str]) -> dict[str, Manifest]:
    """The manifests of these splits in a folder of shards; empty if the folder holds no shards."""
    uris = {split: manifest_uri(place, ".", split) for split in splits}
    missing = [split for split, uri in uris.items() if not files.exists(uri)]
    if len(missing) == len(splits):
        return {}
    faults = [f"{split}: no manifest {uris[split]}; the split was not written, or not to its end" for split in missing]
    manifests: dict[str, Manifest] = {}
    for split in splits:
        if split in missing:
            continue
        try:
            manifests[split] = load_manifest(uris[split])
        except DataError as error:
            faults.append(str(error))
            continue
        found = (manifests[split].task, manifests[split].split)
        if found != (task.name, split):
            faults.append(f"{uris[split]}: belongs to {' '.join(found)}, expected {task.name} {split}")
        elif (annotation := manifests[split].annotation) != task.annotation:
            faults.append(
                f"{uris[split]}: its samples are labelled with a {annotation}, and a {task.kind} task needs a "
                f"{task.annotation}"
            )
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
        test_origin=manifests["train"].source.get("test_origin", ""),
        subset_reasons=subset_reasons(task, len(class_names), sizes),
    )


def _of_layout(layout: Layout, place: str, task: Task, seed: int, splits: Sequence[str]) -> Source:
    listing = layout.read(place, task, seed, splits)
    if not listing.faults:  # a reader that compares names has looked at them already
        listing.faults += name_faults([(f"class {label}", name) for label, name in enumerate(listing.class_names)])
        listing.class_names = [class_name(name) for name in listing.class_names]
    has_classes = annotation_of(task.annotation).has_classes
    if not listing.faults and (label_map := task.label_map_of(place)):
        apply_label_map(listing, label_map)
    if not listing.faults and has_classes and len(listing.class_names) < 2:
        listing.faults.append(f"{len(listing.class_names)} class: expected at least 2")
    listing.faults += _class_faults(task, listing.class_names) if not listing.faults else []
    if listing.faults:
        raise DataError(f"{task.name}: the data in {place} cannot be used", listing.faults)
    found, val_origin = dict(listing.splits), ""
    if "val" not in found:
        found["train"], found["val"] = _split_off_val(listing.splits["train"], task, seed)
        val_origin = f"a stratified tenth of train, seed {seed}"
        if not found["val"]:
            raise DataError(f"{task.name}: {place} has no val, and no class of train has 2 images to make one from")
    sizes = {split: len(samples) for split, samples in found.items()}
    return Source(
        layout=layout.name,
        uri=place,
        class_names=listing.class_names,
        splits={split: found[split] for split in splits},
        val_origin=val_origin,
        test_origin=listing.test_origin,
        notes=left_aside_notes(listing.left_aside),
        subset_reasons=subset_reasons(task, len(listing.class_names), sizes),
    )


def _split_off_val(
    train: Iterable[SourceSample], task: Task, seed: int
) -> tuple[list[SourceSample], list[SourceSample]]:
    """Draws a tenth of each class by seed, at least one image of a class with two. Train and val keep their order."""
    stratum = annotation_of(task.annotation).stratum
    by_stratum: dict[Hashable, list[SourceSample]] = defaultdict(list)
    for sample in train:
        by_stratum[stratum(sample.label)].append(sample)
    val: set[str] = set()
    for samples in by_stratum.values():
        count = max(1, round(len(samples) / 10)) if len(samples) > 1 else 0
        drawn = sorted(samples, key=lambda sample: derive_seed(seed, task.name, "val", sample.key))
        val.update(sample.key for sample in drawn[:count])
    return [s for s in train if s.key not in val], [s for s in train if s.key in val]
