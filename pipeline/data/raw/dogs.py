"""The layout of Stanford Dogs: `Images/n02085620-Chihuahua/*.jpg`, and a list of each split as a .mat file.

`train_list.mat` and `test_list.mat`, in the folder or in `lists/`, list the images below Images/ (`file_list`) and
their classes from 1 (`labels`). The name of a class is that of its folder without the WordNet number. Train must have
an image of each class.
"""

import os
from collections.abc import Sequence

from pipeline.data.raw.collector import Collector, any_file
from pipeline.data.raw.mat_files import MatFile
from pipeline.data.samples import Listing

_LISTS = {"train": "train_list.mat", "test": "test_list.mat"}
_FOLDERS = ("lists", "")


def is_dogs(folder: str) -> bool:
    """Whether either list exists; a missing one is then reported as a fault."""
    return any(any_file(os.path.join(folder, below), tuple(_LISTS.values())) for below in _FOLDERS)


def read_dogs(folder: str, splits: Sequence[str]) -> Listing:
    """Reads the lists of these splits and checks the path of every image in them."""
    listing = Listing()
    lists: dict[str, list[tuple[str, int]]] = {}
    for split, name in _LISTS.items():
        if split not in splits:
            continue
        try:
            lists[split] = _read_list(folder, name)
        except ValueError as error:
            listing.faults.append(str(error))
    if listing.faults:
        return listing
    listing.class_names = _class_names(lists, listing.faults)
    collector = Collector(folder, listing, splits)
    for split, entries in lists.items():
        for number, (path, label) in enumerate(entries, 1):
            collector.add(split, f"{_LISTS[split]}: image {number}", os.path.join("Images", path), label - 1)
    collector.close()
    return listing


def _read_list(folder: str, name: str) -> list[tuple[str, int]]:
    """The images of a split and their classes from 1; raises ValueError if the list is missing or malformed."""
    below = next((below for below in _FOLDERS if any_file(os.path.join(folder, below), (name,))), "")
    file = MatFile(os.path.join(folder, below, name), ["file_list", "labels"])
    paths, labels = file.texts("file_list"), file.whole_numbers("labels")
    if len(paths) != len(labels):
        raise ValueError(f"{name}: has {len(paths)} files and {len(labels)} labels")
    return list(zip(paths, labels, strict=True))


def _class_names(lists: dict[str, list[tuple[str, int]]], faults: list[str]) -> list[str]:
    """Class names by label. The lists must agree on the folders of the classes, and train must have every class."""
    folder_of: dict[int, str] = {}
    for path, label in (entry for entries in lists.values() for entry in entries):
        folder = os.path.dirname(path.replace("\\", "/"))
        if folder_of.setdefault(label, folder) != folder:
            faults.append(f"label {label} is of {folder_of[label]!r} and of {folder!r} ({path!r})")
    missing = sorted(set(range(1, max(folder_of, default=0) + 1)) - {label for _, label in lists["train"]})
    faults += [f"label {label} has no image in {_LISTS['train']}, and so no name" for label in missing]
    return [folder_of[label].partition("-")[2] or folder_of[label] for label in sorted(folder_of) if label > 0]
