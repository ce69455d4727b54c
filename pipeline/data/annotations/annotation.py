"""What a sample is labelled with: how the label is stored beside the image, checked, and made into a batch's targets.

A new annotation is a file of its own and a line in `pipeline.data.annotations.ANNOTATIONS`; docs/extending.md shows
one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from hst.lookup import look_up
from hst.protocols import Targets
from pipeline.data.annotations import ANNOTATIONS


class Annotation(Protocol):
    """One way to label samples. A label is a JSON value: the index of a split has each sample's."""

    has_classes: bool
    """Whether a label is the number of a class. Only then a task has class names."""

    def parse(self, text: str) -> Any:
        """A label as people write it in a table of samples.

        Raises:
            ValueError: the text is none; the message says what was expected.
        """
        ...

    def fault(self, label: Any, class_names: Sequence[str]) -> str:
        """Why a label cannot be used; empty where it can."""
        ...

    def members(self, label: Any) -> dict[str, bytes]:
        """The files of a sample that hold its label, by their ending in the shard's tar; no image's ending."""
        ...

    def stratum(self, label: Any) -> Hashable:
        """The sample's stratum. If a split is drawn, equal parts of all strata are taken."""
        ...

    def collate(self, labels: Sequence[Any]) -> Targets:
        """The labels of a batch as targets, on the CPU."""
        ...


def annotation_of(name: str) -> Annotation:
    """The annotation with this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    found: Annotation = look_up(ANNOTATIONS, name, "annotation")()
    return found
