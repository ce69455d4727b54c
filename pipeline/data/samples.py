"""A sample of a source, and the root folder inside which a source may name files."""

import io
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

_KEY_TAIL = 48
_ABSOLUTE = re.compile("/|[A-Za-z]:/")


@dataclass(frozen=True)
class SourceSample:
    """A labelled image: a file, a part of a file (a tar's member), or pixels from a file that holds many images."""

    key: str
    """Key that is unique in the task; it names the sample in shards and in errors."""
    path: str
    """Absolute path of the file that holds the image."""
    label: Any
    """The number of its class, or another label of the task's annotation."""
    span: tuple[int, int] | None = None
    """First byte and number of bytes, if the file holds more than this image."""
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)
    """uint8 (height, width, 3), if the source has pixels and no image files."""

    def read(self) -> bytes:
        """The bytes of the image file, as the source has them. Bare pixels become a PNG, which is lossless."""
        if self.pixels is not None:
            file = io.BytesIO()
            Image.fromarray(self.pixels).save(file, "PNG")
            return file.getvalue()
        with open(self.path, "rb") as stream:
            if self.span is None:
                return stream.read()
            stream.seek(self.span[0])
            return stream.read(self.span[1])

    @property
    def num_bytes(self) -> int:
        """Approximate number of bytes that `read` returns, known without reading."""
        if self.pixels is not None:
            return self.pixels.nbytes
        return self.span[1] if self.span is not None else os.path.getsize(self.path)


@dataclass
class Listing:
    """What the reader of a layout found. A listing with faults must not be used."""

    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[SourceSample]] = field(default_factory=dict)
    test_origin: str = ""
    """How test was made if the source has none; empty if it has one."""
    left_aside: dict[str, list[str]] = field(default_factory=dict)
    """Folders and files that were not read though they lie among the samples, by the reason; no faults."""
    faults: list[str] = field(default_factory=list)

    def leave_aside(self, reason: str, path: str) -> None:
        """Notes that a folder or file is not read."""
        self.left_aside.setdefault(reason, []).append(path)


def sample_key(split: str, index: int, relative_path: str) -> str:
    """A key from which a person can find the image again. It suits tar members and WebDataset: no dots, no slashes.

    Args:
        split: The split whose list or folder names the image.
        index: The image's place there, from 0; this alone makes the key unique.
        relative_path: The image's path below the source's root.
    """
    stem = os.path.splitext(relative_path)[0]
    return f"{split}-{index:06d}-{re.sub('[^A-Za-z0-9_]+', '-', stem)[-_KEY_TAIL:].strip('-')}"


class Root:
    """A folder whose files may be named from outside. It refuses a path or a link that leads out of it.

    Lists that were made on Windows have backslashes, which are separators here, unless a file has exactly that name.
    """

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        # Lists name tens of thousands of files in a few folders, so each folder is resolved only once.
        self._real_folders: dict[str, str] = {}

    def resolve(self, relative_path: str) -> str:
        """The absolute path of an existing file inside the root.

        Raises:
            ValueError: The path is absolute or leads out of the root, or there is no such file.
        """
        given = relative_path
        if "\\" in given and "\0" not in given and not os.path.lexists(os.path.join(self.folder, given)):
            relative_path = given.replace("\\", "/")
        if _ABSOLUTE.match(relative_path):
            inside = os.path.relpath(relative_path, self.folder) if self._has(relative_path) else ""
            example = f", here {inside!r}" if inside else ""
            raise ValueError(f"{given!r} is an absolute path; give paths relative to {self.folder}{example}")
        folder, name = os.path.split(relative_path)
        if "\0" in relative_path or name in ("", ".", ".."):
            raise ValueError(f"{given!r} is no path of a file below {self.folder}")
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(os.path.join(self.folder, folder))
        path = os.path.join(self._real_folders[folder], name)
        try:
            mode = os.lstat(path).st_mode if self._has(path) else 0
            if stat.S_ISLNK(mode):
                path = os.path.realpath(path)
                mode = os.stat(path).st_mode if self._has(path) else 0
        except OSError as error:
            raise ValueError(f"no file {relative_path!r} ({error.strerror})") from error
        if not self._has(path):
            raise ValueError(f"{relative_path!r} leads out of {self.folder}, to {path}")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{relative_path!r} is no regular file")
        return path

    def _has(self, path: str) -> bool:
        return path.startswith(os.path.join(self.folder, ""))
