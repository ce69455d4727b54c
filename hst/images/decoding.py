"""Reads an image file as people see it: every mode, tag and format is understood, or refused by name.

docs/images.md has the table of what is done with each. Training, prediction, reports and serving all read through
`decode`, so that a model never meets pixels of another kind than it was trained on.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from hst.images.formats import format_of

MAX_PIXELS = 89_478_485
"""Maximum size of an image, decoded or resized. Above it PIL warns of a decompression bomb (a quarter GiB of RGB)."""

WHITE = (255, 255, 255)

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_PHOTOMETRIC, _SUBFILE, _DNG_VERSION = 262, 254, 50706
_IN_PROFILE = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
"""The colour space of a profile that fits a mode."""
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, struct.error)


def decode(
    image: bytes | str | Path | Image.Image, *, decoding: str = "shown", background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """A file's bytes, a path or a PIL image -> an RGB image. Of several frames it is the first.

    Args:
        image: The file, or what PIL opened from it.
        decoding: One of `hst.config.DECODINGS`.
        background: The colour under transparent pixels, for the decoding ``shown``.

    Raises:
        ValueError: The format or the mode is not understood, PIL cannot read the image to its end, or it has more than
            MAX_PIXELS and is not decoded.
        FileNotFoundError: There is no such file.
    """
    with reading(image):
        opened = open_image(image)
        opened.load()
        if opened.mode in _GREY_16:
            opened = _as_8_bits(opened)
        if decoding == "stored":
            return opened.convert("RGB")
        return _without_transparency(_upright(opened), background)


def open_image(image: bytes | str | Path | Image.Image) -> Image.Image:
    """A file as PIL opens it, its pixels not yet read. Errors as for `decode`; the rest of its errors come later."""
    with reading(image) as name:
        opened = image
        if not isinstance(opened, Image.Image):
            try:
                formats = [format_of(_beginning(opened))]
            except ValueError as error:
                raise ValueError(f"not a readable image ({name}): {error}") from error
            opened = Image.open(io.BytesIO(opened) if isinstance(opened, bytes) else opened, formats=formats)
        check_size(opened.size, name)
        if reason := refusal(opened):
            raise ValueError(f"not a readable image ({name}): {reason}")
        return opened


@contextlib.contextmanager
def reading(image: bytes | str | Path | Image.Image) -> Iterator[str]:
    """What goes wrong while PIL reads the image becomes a ValueError; gives the image's name for errors."""
    name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    try:
        yield name
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image too large ({name}): {error}") from error
    except _UNREADABLE as error:
        # PIL's own text for an unknown file is the address of an object in memory.
        reason = "PIL cannot open it" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"not a readable image ({name}): {reason}") from error


def refusal(opened: Image.Image) -> str:
    """Why an opened image, whose pixels need not be loaded, is not understood; empty if it is."""
    tags = opened.tag_v2 if opened.format == "TIFF" else {}  # type: ignore[attr-defined]
    if _DNG_VERSION in tags or tags.get(_SUBFILE, 0) & 1:
        return "its first frame is a thumbnail, as in a camera's raw file; convert it to PNG or JPEG"
    if opened.mode in ("I", "F") and not (opened.mode == "I" and opened.format == "PNG"):
        return (
            f"its pixels are 32-bit numbers (mode {opened.mode}), of which nobody knows what is black and what is "
            f"white; convert it to 8 or 16 bits"
        )
    if opened.mode in _GREY_16 and (tags.get(_PHOTOMETRIC, 1) == 0 or "transparency" in opened.info):
        what = "a transparent grey" if "transparency" in opened.info else "white as 0"
        return f"it has 16 bits and {what}, which is not understood; convert it to 8 bits"
    if opened.mode == "CMYK" and opened.format == "JPEG" and "adobe" not in opened.info:
        return "a CMYK JPEG without Adobe's mark does not say whether its inks are inverted; convert it to RGB"
    if opened.mode in ("LAB", "HSV"):
        return f"its colours are {opened.mode}; convert it to RGB"
    return ""


def orientation(opened: Image.Image) -> int:
    """The orientation tag, 1 (upright) to 8; 1 without a tag, or with one that means nothing.

    PIL turns a TIFF by itself when it loads it.
    """
    try:
        found = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except (*_UNREADABLE, ValueError, KeyError, TypeError):
        return 1  # damaged tags; no viewer heeds them
    return found if found in range(1, 9) else 1


def check_size(size: tuple[int, int], name: str) -> None:
    """Raises ValueError if an image of (width, height) has more than MAX_PIXELS."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"image too large ({name}): {size[0]} x {size[1]} pixels; at most {MAX_PIXELS} are possible")


def _beginning(image: bytes | str | Path) -> bytes:
    if isinstance(image, bytes):
        return image[:16]
    with open(image, "rb") as file:
        return file.read(16)


def _as_8_bits(grey: Image.Image) -> Image.Image:
    """16-bit grey, of the whole range 0 to 65535, as 8-bit grey; tags stay."""
    values = np.asarray(grey).astype(np.uint32)
    small = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    small.info = dict(grey.info)
    return small


def _upright(image: Image.Image) -> Image.Image:
    if orientation(image) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    assert turned is not None  # it is so only in place
    return turned


def _without_transparency(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in sRGB, laid on the background."""
    if not image.has_transparency_data:
        return _in_srgb(image)
    whole = image.convert("RGBA")
    alpha = whole.getchannel("A")
    colours = whole.convert("RGB")
    colours.info = dict(image.info)
    return Image.composite(_in_srgb(colours), Image.new("RGB", image.size, background), alpha)


def _in_srgb(image: Image.Image) -> Image.Image:
    """An opaque image as RGB, by its colour profile if that fits."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    if image.mode not in _IN_PROFILE:
        image = image.convert("RGB")
    if (transform := _to_srgb(profile, image.mode)) is None:
        return image.convert("RGB")
    return transform.apply(image)


@functools.lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion to sRGB; None if the profile is sRGB itself, of another colour space, or cannot be read."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _IN_PROFILE[mode] or "sRGB" in (source.profile.profile_description or ""):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None
