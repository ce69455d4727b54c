"""What a task's images are, found in one pass over them: classes, sizes, formats, tags, duplicates, some thumbnails.

Every image is decoded as the model will see it, but small. Memory does not grow with the images' bytes: of every image
a hash and its key stay, of a few a thumbnail.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from hst.images.decoding import decode, open_image, orientation, reading
from hst.randomness import derive_seed

THUMBNAIL_SIDE = 128
MAX_THUMBNAILS = 40
"""Largest number of thumbnails of a split."""
_HASHED_SIDE = 64
"""Sides of the pictures by which images are compared, in pixels."""
_SEVERAL_FRAMES = ("GIF", "TIFF", "PNG", "WEBP")
"""Formats with frames that people mean. A camera's JPEG may hold a preview beside the photo."""


@dataclass(frozen=True)
class ReportSample:
    """One labelled image of a split."""

    key: str
    label: int
    """Index into the class names."""
    image: bytes
    """The file's bytes."""


@dataclass(frozen=True)
class Thumbnail:
    """One image of a contact sheet."""

    rank: int
    """Its place in the drawing of lots."""
    key: str
    pixels: np.ndarray = field(compare=False)
    """uint8 (height, width, 3), each at most THUMBNAIL_SIDE."""

    def __lt__(self, other: Thumbnail) -> bool:
        return self.rank < other.rank


TAGS = {
    "turned": "an orientation tag that turns or mirrors it",
    "transparent": "transparent pixels",
    "profile": "a colour profile",
    "frames": "several frames, of which the first is used",
}
"""What is counted of the images, in words."""


@dataclass
class SplitSummary:
    """One split."""

    class_counts: list[int]
    """Images by label."""
    num_bytes: int = 0
    """The size of all image files together."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images by (width, height) in pixels."""
    formats: Counter[str] = field(default_factory=Counter)
    """Images by file format and pixel mode, as in `JPEG RGB`."""
    tags: Counter[str] = field(default_factory=Counter)
    """Images with each property that a reader can overlook: a key of TAGS."""
    constant: list[str] = field(default_factory=list)
    """Keys of images that have one colour only."""
    unreadable: list[str] = field(default_factory=list)
    """Key and reason of images that cannot be read."""
    sheet: list[tuple[int, Thumbnail]] = field(default_factory=list)
    """Labels and thumbnails of the contact sheet, by label."""

    @property
    def num_images(self) -> int:
        return sum(self.class_counts)


class Duplicates:
    """Finds images that occur more than once, by a hash of what is seen of them."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, str, int]] = {}
        self._groups: dict[bytes, list[tuple[str, str, int]]] = {}

    def add(self, split: str, sample: ReportSample, digest: bytes) -> None:
        """Takes one image in; ``digest`` is equal for images that look equal."""
        place = (split, sample.key, sample.label)
        first = self._first.setdefault(digest, place)
        if first is not place:
            self._groups.setdefault(digest, [first]).append(place)

    def between(self, split: str, other: str) -> list[tuple[str, str]]:
        """The keys of images of ``other`` that are also in ``split``, each with its key there."""
        pairs = []
        for places in self._groups.values():
            there = [key for name, key, _ in places if name == split]
            pairs += [(there[0], key) for name, key, _ in places if name == other and there]
        return pairs

    def within(self, split: str) -> int:
        """How many images of a split repeat an earlier one of that split."""
        return sum(count - 1 for count in self._counts(split) if count)

    def repeated(self, split: str) -> int:
        """How many different images occur more than once in a split."""
        return sum(count > 1 for count in self._counts(split))

    def with_other_labels(self) -> list[list[str]]:
        """Equal images that have different labels: a list of `<split>/<key>` for each of them."""
        return [
            [f"{split}/{key}" for split, key, _ in places]
            for places in self._groups.values()
            if len({label for _, _, label in places}) > 1
        ]

    def _counts(self, split: str) -> list[int]:
        return [sum(name == split for name, _, _ in places) for places in self._groups.values()]


def summarize_split(
    task: str,
    split: str,
    class_names: Sequence[str],
    samples: Iterable[ReportSample],
    duplicates: Duplicates,
    *,
    decoding: str = "shown",
) -> SplitSummary:
    """One pass over a split, whose images are read by the ``decoding`` of the task's recipe.

    They are also taken into ``duplicates``.

    Raises:
        ValueError: a label is none of the classes.
    """
    summary = SplitSummary([0] * len(class_names))
    sheet = _Sheet(task, split, len(class_names))
    for sample in samples:
        if not 0 <= sample.label < len(class_names):
            raise ValueError(
                f"{split}: sample {sample.key!r} has label {sample.label}, expected 0 to {len(class_names) - 1}"
            )
        summary.class_counts[sample.label] += 1
        summary.num_bytes += len(sample.image)
        digest = hashlib.sha256(sample.image).digest()
        try:
            seen = _look(summary, sample, decoding)
        except ValueError as error:
            summary.unreadable.append(f"{sample.key}: {error}")
        else:
            sheet.add(sample, seen)
            small = seen.resize((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.BOX)
            digest = hashlib.sha256(repr(seen.size).encode() + small.tobytes()).digest()
        duplicates.add(split, sample, digest)
    summary.sheet = sheet.chosen()
    return summary


def _look(summary: SplitSummary, sample: ReportSample, decoding: str) -> Image.Image:
    """Counts what an image is, and returns it as the model will see it; a JPEG at a fraction of its size.

    Raises:
        ValueError: It cannot be read.
    """
    with reading(sample.image):
        image = open_image(sample.image)
        size, kind = image.size, f"{image.format} {image.mode}"
        tags = {
            "turned": orientation(image) > 1,
            "transparent": _is_transparent(image),
            "profile": bool(image.info.get("icc_profile")),
            "frames": image.format in _SEVERAL_FRAMES and getattr(image, "n_frames", 1) > 1,
        }
        image.draft("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    seen = decode(image, decoding=decoding)
    summary.sizes[size] += 1
    summary.formats[kind] += 1
    summary.tags.update(name for name, found in tags.items() if found)
    if len(seen.getcolors(1) or ()) == 1:
        summary.constant.append(sample.key)
    return seen


def _is_transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


class _Sheet:
    """Draws lots for the images of a contact sheet: as many classes as there is room for, and of each about as many.

    A lot is a function of the task, the split and the image's key, so that the order of the samples has no part in it.
    """

    def __init__(self, task: str, split: str, num_classes: int) -> None:
        self._lot = (task, "contact sheet", split)
        self._most_of_a_class = -(-MAX_THUMBNAILS // max(1, min(num_classes, MAX_THUMBNAILS)))
        self._held: dict[int, list[Thumbnail]] = {}

    def add(self, sample: ReportSample, image: Image.Image) -> None:
        """Keeps a thumbnail of an image, if its lot is among the first so far."""
        if sample.label not in self._held and len(self._held) == MAX_THUMBNAILS:
            last = max(self._held, key=self._class_rank)
            if self._class_rank(sample.label) > self._class_rank(last):
                return
            del self._held[last]
        held = self._held.setdefault(sample.label, [])
        rank = derive_seed(0, *self._lot, sample.key)
        if len(held) == self._most_of_a_class and rank > held[-1].rank:
            return
        small = image.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        bisect.insort(held, Thumbnail(rank, sample.key, np.asarray(small)))
        del held[self._most_of_a_class :]

    def chosen(self) -> list[tuple[int, Thumbnail]]:
        """At most MAX_THUMBNAILS, the first of each class before the second of any; in the order of the labels."""
        turns = [
            (turn, self._class_rank(label), label, thumbnail)
            for label, held in self._held.items()
            for turn, thumbnail in enumerate(held)
        ]
        taken = sorted(turns)[:MAX_THUMBNAILS]
        return [(label, thumbnail) for turn, _, label, thumbnail in sorted(taken, key=lambda one: (one[2], one[0]))]

    def _class_rank(self, label: int) -> int:
        return derive_seed(0, *self._lot, label)
