"""The formats of image files that are read, told by a file's first bytes. Others are refused by name."""

from __future__ import annotations

FORMATS = {
    "PNG": ("png",),
    "JPEG": ("jpg", "jpeg"),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "BMP": ("bmp",),
    "GIF": ("gif",),
}
"""The formats that are read, by PIL's name, and how files of each are called; the first is its member in a shard."""

_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"\0\0\x01\0": "ICO",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"<svg": "SVG",
    b"<?xml": "SVG",
    b"P5": "PNM",
    b"P6": "PNM",
}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}
"""The kinds of an ISO media file, by the four bytes after ``ftyp``."""


def format_of(data: bytes) -> str:
    """PIL's name of an image file's format, by its first bytes and not by its name.

    Raises:
        ValueError: the format is none of FORMATS; the message names it where it is known.
    """
    found = next((name for start, name in _BEGINNINGS.items() if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = "WEBP"
    elif data[4:8] == b"ftyp":
        found = _BRANDS.get(data[8:12])
    if found in FORMATS:
        return found
    what = f"a {found} file" if found else f"no image (it begins with {data[:8]!r})"
    raise ValueError(f"{what}; expected one of {', '.join(FORMATS)}: convert it to PNG, or remove it")
