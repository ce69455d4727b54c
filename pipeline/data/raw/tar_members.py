"""Sorts the images and labels of a foreign WebDataset tar into samples, by the names of its members.

WebDataset ends a sample's key at the first dot of the file's name, so `photo.v2.jpg` is the member `v2.jpg` of the
sample `photo`. Many tars are packed from files whose names have dots, and whoever packed them meant the sample
`photo.v2`. A name with two dots is therefore read by what stands beside it:

    photo.v2.jpg, photo.v2.cls                          the sample photo.v2
    photo.jpg, photo.cls, photo.seg.png                 the sample photo; photo.seg.png is a further member, left aside
    photo.jpg, photo.cls, photo.v2.jpg, photo.v2.cls    a fault: both readings are possible
    photo.cls, photo.v2.jpg                             a fault: no sample uses the two
"""

from dataclasses import dataclass, field

from pipeline.data.images import IMAGE_MEMBERS
from pipeline.data.raw.left_aside import HIDDEN, is_hidden
from pipeline.data.samples import Listing

LABEL = "cls"
FURTHER = "further members of samples, by WebDataset's rule"
"""Why a member is left aside: a key of `Listing.left_aside`."""

Span = tuple[int, int]
"""First byte in the tar, and number of bytes."""


@dataclass
class Members:
    """A sample's image and label, each once if the sample is whole, as (name of the member, place)."""

    images: list[tuple[str, Span]] = field(default_factory=list)
    labels: list[tuple[str, Span]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether there are both."""
        return bool(self.images and self.labels)


class TarMembers:
    """The images and labels of one tar, by key, in the tar's order."""

    def __init__(self, tar: str, listing: Listing) -> None:
        """Takes the tar's name, for faults, and the listing to which faults and what is left aside are added."""
        self._tar = tar
        self._listing = listing
        self._by_key: dict[str, Members] = {}

    def add(self, name: str, span: Span) -> None:
        """Adds a member if it is an image or a label."""
        stem, dot, extension = name.rpartition(".")
        is_image = extension.lower() in IMAGE_MEMBERS
        if not dot or not (is_image or extension.lower() == LABEL):
            return
        if any(is_hidden(part) for part in name.split("/") if part != "."):
            self._listing.leave_aside(HIDDEN, f"{self._tar}/{name}")
            return
        members = self._by_key.setdefault(stem, Members())
        (members.images if is_image else members.labels).append((name, span))

    def samples(self) -> dict[str, Members]:
        """The whole samples by key; what belongs to none of them is a fault, or is left aside as a further member."""
        found = {}
        for key, members in self._by_key.items():
            shorter = _shorter_keys(key)
            whole = [other for other in shorter if other in self._by_key and self._by_key[other].is_whole]
            if whole and not members.is_whole:
                for name, _ in members.images + members.labels:
                    self._listing.leave_aside(FURTHER, f"{self._tar}/{name}")
                continue
            faults = self._faults(key, members)
            if whole and whole[0] == shorter[0]:
                faults.append(
                    f"sample {key!r} may be one of its own, or further members of sample {whole[0]!r} (WebDataset ends "
                    f"a key at the first dot); rename the one or the other, without dots"
                )
            self._listing.faults += [f"{self._tar}: {fault}" for fault in faults]
            if members.is_whole:
                found[key] = members
        return found

    def _faults(self, key: str, members: Members) -> list[str]:
        faults = []
        if len(members.images) > 1:
            faults.append(f"sample {key!r} has more than one image ({_names(members.images)})")
        if len(members.labels) > 1:
            faults.append(f"sample {key!r} has more than one {LABEL}")
        if not members.labels:
            faults.append(f"sample {key!r} has no {LABEL}; no sample uses {_names(members.images)}")
        if not members.images:
            faults.append(
                f"sample {key!r} has no image ({', '.join(IMAGE_MEMBERS)}); no sample uses {_names(members.labels)}"
            )
        return faults


def _shorter_keys(key: str) -> list[str]:
    """The key up to each dot of the file's name; the first is WebDataset's. Dots of folders end no key."""
    start = key.rfind("/") + 1
    return [key[:dot] for dot in range(start, len(key)) if key[dot] == "."]


def _names(members: list[tuple[str, Span]]) -> str:
    return ", ".join(name for name, _ in members)
