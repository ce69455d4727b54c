"""The layout of Oxford Flowers-102: `jpg/image_00001.jpg`, ..., `imagelabels.mat` and `setid.mat`.

`labels` has the class, from 1, of each image; `trnid`, `valid` and `tstid` have the image numbers, from 1, of train,
val and test. The data set does not name its classes; classnames.txt may.
"""

import os
from collections.abc import Sequence

from pipeline.data.raw.collector import Collector, any_file
from pipeline.data.raw.mat_files import MatFile
from pipeline.data.raw.text_lists import read_class_names
from pipeline.data.samples import Listing

LABELS, SPLITS = "imagelabels.mat", "setid.mat"
_VARIABLES = {"train": "trnid", "val": "valid", "test": "tstid"}


def is_flowers(folder: str) -> bool:
    """Whether either .mat file exists; a missing one is then reported as a fault."""
    return any_file(folder, (LABELS, SPLITS))


def read_flowers(folder: str, known: Sequence[str] | None, splits: Sequence[str]) -> Listing:
    """Reads both files and checks the path of every image of these splits.

    Args:
        folder: The task's folder.
        known: Class names by label, used if there is no classnames.txt.
        splits: Splits to read, from train, val and test.
    """
    listing = Listing()
    listing.class_names = read_class_names(folder, known, listing.faults)
    labels: list[int] = []
    numbers: dict[str, list[int]] = {}
    try:
        labels = MatFile(os.path.join(folder, LABELS), ["labels"]).whole_numbers("labels")
    except ValueError as error:
        listing.faults.append(str(error))
    try:
        file = MatFile(os.path.join(folder, SPLITS), [_VARIABLES[split] for split in splits])
        numbers = {split: file.whole_numbers(_VARIABLES[split]) for split in splits}
    except ValueError as error:
        listing.faults.append(str(error))
    if listing.faults:
        return listing
    collector = Collector(folder, listing, splits)
    for split, of_split in numbers.items():
        for number in of_split:
            where = f"{SPLITS}: {_VARIABLES[split]}, image {number}"
            if 1 <= number <= len(labels):
                collector.add(split, where, f"jpg/image_{number:05d}.jpg", labels[number - 1] - 1)
            else:
                listing.faults.append(f"{where}: {LABELS} has labels for the images 1 to {len(labels)}")
    collector.close()
    return listing
