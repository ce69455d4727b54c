"""Finer labels made a task's: each label of the data has its new label at its place in a list."""

import dataclasses
from collections.abc import Sequence

from pipeline.data.samples import Listing


def apply_label_map(listing: Listing, label_map: Sequence[int]) -> None:
    """Gives every sample its new label; the classes, each now of several names, are named by their numbers.

    Args:
        listing: Without faults; gains one where its classes are not as many as the map's labels.
        label_map: The new label, from 0, of each label of the listing.
    """
    if len(label_map) != len(listing.class_names):
        listing.faults.append(
            f"has {len(listing.class_names)} classes, and the label map new labels for {len(label_map)}"
        )
        return
    for split, samples in listing.splits.items():
        listing.splits[split] = [dataclasses.replace(sample, label=label_map[sample.label]) for sample in samples]
    listing.class_names = [str(label) for label in range(max(label_map) + 1)]
