"""Collects the samples of an official list; checks that labels are in range and files inside the root, none twice."""

import os
from collections.abc import Sequence
from typing import Any

from pipeline.data.annotations.annotation import Annotation
from pipeline.data.annotations.class_label import ClassLabel
from pipeline.data.samples import Listing, Root, SourceSample, sample_key


class Collector:
    """Fills a listing's splits. An entry that cannot be used becomes a fault with its place in the list."""

    def __init__(
        self, folder: str, listing: Listing, splits: Sequence[str], annotation: Annotation | None = None
    ) -> None:
        """Accepts files below `folder` in these splits, with labels of an annotation: by default numbers of classes."""
        self._annotation = annotation or ClassLabel()
        self._root = Root(folder)
        self._listing = listing
        self._splits = splits
        self._where: dict[str, str] = {}

    def add(self, split: str, where: str, relative_path: str, label: Any) -> None:
        """Adds one sample; ignores it, without looking at its file, if its split is not read.

        Args:
            split: train, val or test.
            where: The list and the place in it, for faults.
            relative_path: Path of the image below the root.
            label: What the image is labelled with; of a class its number, from 0.
        """
        if split not in self._splits:
            return
        faults = self._listing.faults
        if fault := self._annotation.fault(label, self._listing.class_names):
            faults.append(f"{where}: {fault}")
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
        """Call at the end: if there are no other faults, each of train and test that is read must have an image."""
        if not self._listing.faults:
            for split in ("train", "test"):
                if split in self._splits and split not in self._listing.splits:
                    self._listing.faults.append(f"{split}: has no image of {self._root.folder}")


def any_file(folder: str, names: tuple[str, ...]) -> bool:
    """Whether one of a layout's files exists; missing ones are then reported as faults."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)
