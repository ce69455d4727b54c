"""The layout of Stanford Cars: `cars_train/*.jpg`, `cars_test/*.jpg`, and lists as .mat files.

`cars_train_annos.mat` and `cars_test_annos_withlabels.mat` list the images (`fname`) and their classes from 1
(`class`); `cars_meta.mat` lists the names of the classes (`class_names`). Each is in the folder or in `devkit/`.
"""

import os
from collections.abc import Sequence

from pipeline.data.raw.collector import Collector, any_file
from pipeline.data.raw.mat_files import MatFile
from pipeline.data.samples import Listing

_NAMES = "cars_meta.mat"
_LISTS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
_FOLDERS = ("devkit", "")


def is_cars(folder: str) -> bool:
    """Whether any of the lists exists; missing ones are then reported as faults."""
    return any(any_file(os.path.join(folder, below), (_NAMES, *_LISTS.values())) for below in _FOLDERS)


def read_cars(folder: str, splits: Sequence[str]) -> Listing:
    """Reads the class names and the lists of these splits, and checks the path of every image in them."""
    listing = Listing()
    lists: dict[str, list[tuple[str, int]]] = {}
    try:
        listing.class_names = _open(folder, _NAMES, "class_names").texts("class_names")
    except ValueError as error:
        listing.faults.append(str(error))
    for split, name in _LISTS.items():
        if split not in splits:
            continue
        try:
            file = _open(folder, name, "annotations")
            images, classes = file.texts("annotations", "fname"), file.whole_numbers("annotations", "class")
            lists[split] = list(zip(images, classes, strict=True))
        except ValueError as error:
            listing.faults.append(str(error))
    if listing.faults:
        return listing
    collector = Collector(folder, listing, splits)
    for split, entries in lists.items():
        for number, (image, class_id) in enumerate(entries, 1):
            collector.add(split, f"{_LISTS[split]}: image {number}", f"cars_{split}/{image}", class_id - 1)
    collector.close()
    return listing


def _open(folder: str, name: str, variable: str) -> MatFile:
    below = next((below for below in _FOLDERS if any_file(os.path.join(folder, below), (name,))), "")
    return MatFile(os.path.join(folder, below, name), [variable])
