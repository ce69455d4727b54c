"""The layout of CUB-200-2011 and NABirds: text files that map each image id to a path, a class and a split.

`images.txt` (<id> <path below images/>), `image_class_labels.txt` (<id> <class id>), `train_test_split.txt` (<id> <1
for train, 0 for test>), `classes.txt` (<class id> <name>). Labels count the classes that have an image, in the order of
their ids: all 200 of CUB (ids 1 to 200), 555 of the 1011 of NABirds (the others are groups of birds).
"""

import os
import re
from collections.abc import Sequence

from pipeline.data.raw.collector import Collector, any_file
from pipeline.data.raw.text_lists import read_lines
from pipeline.data.samples import Listing

IMAGES, LABELS, SPLITS, CLASSES = "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"
_LINES = {
    IMAGES: (r"(\S+) (.+)", "<image id> <path>"),
    LABELS: (r"(\S+) ([0-9]{1,9})", "<image id> <class id>"),
    SPLITS: (r"(\S+) ([01])", "<image id> <1 for train, 0 for test>"),
    CLASSES: (r"([0-9]{1,9}) (.+)", "<class id> <name>"),
}


def is_id_lists(folder: str) -> bool:
    """Whether a list exists that no other layout has."""
    return any_file(folder, (LABELS, SPLITS))


def read_id_lists(folder: str, splits: Sequence[str]) -> Listing:
    """Reads the four lists and checks the path of every image of these splits, in the order of images.txt."""
    listing = Listing()
    faults = listing.faults
    paths, class_of, is_train, names = (_read(folder, name, faults) for name in _LINES)
    if faults:
        return listing
    for name, table in ((LABELS, class_of), (SPLITS, is_train)):
        faults += [f"{name}: has no line for image {image}" for image in paths if image not in table]
        faults += [f"{name}: image {image} is not in {IMAGES}" for image in table if image not in paths]
    name_of = {int(class_id): name for class_id, name in names.items()}
    used = sorted({int(class_id) for class_id in class_of.values()})
    faults += [
        f"{CLASSES}: has no class {class_id}, which {LABELS} names" for class_id in used if class_id not in name_of
    ]
    if faults:
        return listing
    # CUB writes 001.Black_footed_Albatross, where the number repeats the id.
    listing.class_names = [re.sub(r"^[0-9]+\.", "", name_of[class_id]) for class_id in used]
    label_of = {class_id: label for label, class_id in enumerate(used)}
    collector = Collector(folder, listing, splits)
    for image, path in paths.items():
        split = "train" if is_train[image] == "1" else "test"
        collector.add(split, f"{IMAGES}: image {image}", os.path.join("images", path), label_of[int(class_of[image])])
    collector.close()
    return listing


def _read(folder: str, name: str, faults: list[str]) -> dict[str, str]:
    """The lines of a list in their order: the text before the first space -> the text after it."""
    if not os.path.isfile(os.path.join(folder, name)):
        faults.append(f"{name}: no such file in {folder}")
        return {}
    pattern, expected = _LINES[name]
    read: dict[str, str] = {}
    for number, line in enumerate(read_lines(folder, name, faults), 1):
        match = re.fullmatch(pattern, line.strip())
        if not match:
            if line.strip():
                faults.append(f"{name}:{number}: {line.strip()!r}: expected {expected}")
        elif match[1] in read:
            faults.append(f"{name}:{number}: {match[1]} has a line already")
        else:
            read[match[1]] = match[2]
    return read
