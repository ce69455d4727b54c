"""Maps the finer labels of a data set to the labels of a task, by a list that is indexed by the old label."""

import dataclasses
from collections.abc import Sequence

from pipeline.data.samples import Listing


def apply_label_map(listing: Listing, label_map: Sequence[int]) -> None:
    """Gives every sample its new label. New classes get their numbers as names, because each has several old names.

    Args:
        listing: A listing without faults; gets one if the number of its classes is not the map's length.
        label_map: The new label, from 0, of each label of the listing.
    """
    if len(label_map) != len(listing.class_names):
        listing.faults.append(
            f"has {len(listing.class_names)} classes, but the label map has new labels for {len(label_map)}"
        )
        return
    for split, samples in listing.splits.items():
        listing.splits[split] = [dataclasses.replace(sample, label=label_map[sample.label]) for sample in samples]
    listing.class_names = [str(label) for label in range(max(label_map) + 1)]
