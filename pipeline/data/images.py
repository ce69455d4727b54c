"""Checks the bytes of an image file: their format, and whether they can be decoded completely."""

import io

from PIL import Image, UnidentifiedImageError

from hst.preprocessing import MAX_PIXELS


def image_member(data: bytes) -> str:
    """Name of the image's member in a shard, by its real format and not by its file name.

    Raises:
        ValueError: The bytes are no PNG, JPEG or WebP image.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError(f"no PNG, JPEG or WebP image (it begins with {data[:8]!r}); convert or remove it")


def check_decodes(data: bytes) -> None:
    """Decodes an image completely; a JPEG at an eighth of its size, which takes a third of the time and finds as much.

    Raises:
        ValueError: The image is damaged, cut off, or larger than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS} are read; is it what it claims?")
            image.draft("RGB", (1, 1))
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({len(data)} bytes): {error}") from error
