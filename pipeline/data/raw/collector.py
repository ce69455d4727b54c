"""Gathers the samples that an official list names: each label in its range, each file inside the root, none twice."""

import os
from collections.abc import Sequence

from pipeline.data.samples import Listing, Root, SourceSample, sample_key


class Collector:
    """Fills a listing's splits; what cannot be taken becomes a fault that says where it stands."""

    def __init__(self, folder: str, listing: Listing, splits: Sequence[str]) -> None:
        """Takes samples of files below `folder`, with labels of the listing's class names, in these splits."""
        self._root = Root(folder)
        self._listing = listing
        self._splits = splits
        self._where: dict[str, str] = {}

    def add(self, split: str, where: str, relative_path: str, label: int) -> None:
        """Takes one sample; of a split that is not to be read, no file is looked at.

        Args:
            split: train, val or test.
            where: The list and the place in it, for faults.
            relative_path: Of the image, below the root.
            label: From 0.
        """
        if split not in self._splits:
            return
        faults, num_classes = self._listing.faults, len(self._listing.class_names)
        if not 0 <= label < num_classes:
            faults.append(f"{where}: label {label} is out of range; {num_classes} classes: 0 to {num_classes - 1}")
        try:
            path = self._root.resolve(relative_path)
        except ValueError as error:
            faults.append(f"{where}: {error}")
            return
        if path in self._where:
            faults.append(f"{where}: {relative_path!r} stands in {self._where[path]} already")
        self._where.setdefault(path, where)
        samples = self._listing.splits.setdefault(split, [])
        samples.append(SourceSample(sample_key(split, len(samples), relative_path), path, label))

    def close(self) -> None:
        """To be called at the end: without other faults, train and test (if it is read) have to hold an image."""
        if not self._listing.faults:
            for split in ("train", "test"):
                if split in self._splits and split not in self._listing.splits:
                    self._listing.faults.append(f"{split}: no image of {self._root.folder} is in it")


def any_file(folder: str, names: tuple[str, ...]) -> bool:
    """Whether one of the files of a layout is there: those that are missing are then faults to report."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)
