"""Checks the bytes of an image file: their format, and whether they can be decoded completely."""

from hst.images.decoding import open_image, reading
from hst.images.formats import FORMATS, format_of

IMAGE_MEMBERS = tuple(member for names in FORMATS.values() for member in names)
"""Extensions of image files, in shards and elsewhere, without the dot."""
IMAGE_SUFFIXES = tuple(f".{member}" for member in IMAGE_MEMBERS)


def image_member(data: bytes) -> str:
    """Name of the image's member in a shard, by its real format and not by its file name.

    Raises:
        ValueError: The bytes are of none of the formats that are read.
    """
    return FORMATS[format_of(data)][0]


def check_decodes(data: bytes) -> None:
    """Decodes an image completely; a JPEG at an eighth of its size, which takes a third of the time and finds as much.

    Raises:
        ValueError: The image is damaged, cut off, too large, or of a format or mode that is not understood.
    """
    with reading(data):
        image = open_image(data)
        image.draft("RGB", (1, 1))
        image.load()
