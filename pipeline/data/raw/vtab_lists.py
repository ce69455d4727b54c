"""The layout of the VTAB-1k zip (SSF and NOAH repositories): a text file for each split, `<relative path> <label>`.

`train800.txt` and `val200.txt` together equal `train800val200.txt`; `test.txt` lists test. `classnames.txt` (one name
per line) is optional. The numbers in the file names are the benchmark's; the lists may have other lengths.
"""

import os
import re
from collections.abc import Sequence

from pipeline.data.raw.text_lists import read_class_names, read_lines
from pipeline.data.samples import Listing, Root, SourceSample, sample_key

LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
TRAINVAL_LIST = "train800val200.txt"


def is_vtab_lists(folder: str) -> bool:
    """Whether any of the lists exists; missing ones are then reported as faults."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (*LISTS.values(), TRAINVAL_LIST))


def read_vtab_lists(folder: str, class_names: Sequence[str] | None, splits: Sequence[str]) -> Listing:
    """Reads a task's lists of these splits and checks the path of every image in them.

    Args:
        folder: The task's folder.
        class_names: Class names by label, used without classnames.txt; None if the task has none either.
        splits: Splits to read, from LISTS; other splits are not looked at.
    """
    listing = Listing()
    listing.class_names = read_class_names(folder, class_names, listing.faults)
    root = Root(folder)
    for split in splits:
        name = LISTS[split]
        if os.path.isfile(os.path.join(folder, name)):
            listing.splits[split] = _read_list(root, name, split, len(listing.class_names), listing.faults)
        elif split != "val":
            listing.faults.append(f"{name}: no such file in {folder}")
    _check_overlap(root, listing)
    if "val" in listing.splits and "train" in listing.splits:
        _check_trainval(root, listing)
    return listing


def _read_list(root: Root, name: str, split: str, num_classes: int, faults: list[str]) -> list[SourceSample]:
    samples: list[SourceSample] = []
    first_line: dict[str, int] = {}
    before = len(faults)
    for number, line in enumerate(read_lines(root.folder, name, faults), 1):
        if not line.strip():
            continue
        relative_path, _, text = line.strip().rpartition(" ")
        where = f"{name}:{number}"
        if not relative_path or not re.fullmatch(r"-?[0-9]{1,9}", text):
            faults.append(f"{where}: {line.strip()!r}: expected <relative path> <label>")
            continue
        label = int(text)
        if num_classes and not 0 <= label < num_classes:  # missing class names are a fault of their own
            faults.append(f"{where}: label {label} is out of range; {num_classes} classes: 0 to {num_classes - 1}")
        try:
            path = root.resolve(relative_path.strip())
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        if path in first_line:
            faults.append(f"{where}: {relative_path!r} stands in line {first_line[path]} already")
        first_line.setdefault(path, number)
        samples.append(SourceSample(sample_key(split, len(samples), relative_path), path, label))
    if not samples and len(faults) == before:
        faults.append(f"{name}: lists no image")
    return samples


def _check_overlap(root: Root, listing: Listing) -> None:
    """Adds a fault for each image in two splits: it would be used both to train and to test."""
    split_of: dict[str, str] = {}
    for split, samples in listing.splits.items():
        for sample in samples:
            other = split_of.setdefault(sample.path, split)
            if other != split:
                relative = os.path.relpath(sample.path, root.folder)
                listing.faults.append(f"{LISTS[split]}: {relative!r} stands in {LISTS[other]} too")


def _check_trainval(root: Root, listing: Listing) -> None:
    """Adds a fault unless train800val200.txt, on which the paper trains, has the same images as our train and val."""
    if listing.faults or not os.path.isfile(os.path.join(root.folder, TRAINVAL_LIST)):
        return
    together = _read_list(root, TRAINVAL_LIST, "trainval", len(listing.class_names), listing.faults)
    ours = {(s.path, s.label) for split in ("train", "val") for s in listing.splits[split]}
    theirs = {(s.path, s.label) for s in together}
    if not listing.faults and ours != theirs:
        listing.faults.append(
            f"{TRAINVAL_LIST}: {len(theirs - ours)} of its lines stand in neither {LISTS['train']} nor {LISTS['val']}, "
            f"{len(ours - theirs)} of theirs are missing in it"
        )
