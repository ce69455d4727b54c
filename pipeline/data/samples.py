"""One sample of a source, and files that a source may name: those inside its root."""

import io
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

_KEY_TAIL = 48


@dataclass(frozen=True)
class SourceSample:
    """One labelled image: a file, a part of a file (a tar's member), or the pixels that a file of many holds."""

    key: str
    """Unique in the task; names the sample in shards and in errors."""
    path: str
    """Of the file that holds the image, absolute."""
    label: Any
    """The number of its class, or whatever else the task's annotation labels a sample with."""
    span: tuple[int, int] | None = None
    """First byte and number of bytes, where the file holds more than this image."""
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)
    """uint8 (height, width, 3), where the source has pixels and no image files."""

    def read(self) -> bytes:
        """The image file's bytes, as the source has them; bare pixels become a PNG, which loses nothing."""
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
        """About as many as `read` gives; known without reading."""
        if self.pixels is not None:
            return self.pixels.nbytes
        return self.span[1] if self.span is not None else os.path.getsize(self.path)


@dataclass
class Listing:
    """What the reader of a layout found; with faults it is not to be used."""

    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[SourceSample]] = field(default_factory=dict)
    test_origin: str = ""
    """How test was made where the source has none; empty where it has one."""
    faults: list[str] = field(default_factory=list)


def sample_key(split: str, index: int, relative_path: str) -> str:
    """A key that tar members and WebDataset take (no dots, no slashes), from which a person finds the image again.

    Args:
        split: The split whose list or folder names the image.
        index: The image's place there, from 0: this alone makes the key unique.
        relative_path: Of the image, below the source's root.
    """
    stem = os.path.splitext(relative_path)[0]
    return f"{split}-{index:06d}-{re.sub('[^A-Za-z0-9_]+', '-', stem)[-_KEY_TAIL:].strip('-')}"


class Root:
    """A folder whose files may be named from outside; a path or a link that leads out of it is refused."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        # Lists name tens of thousands of files in a few folders; each folder is resolved once.
        self._real_folders: dict[str, str] = {}

    def resolve(self, relative_path: str) -> str:
        """The absolute path of an existing file inside the root.

        Raises:
            ValueError: the path is absolute or leads out of the root, or there is no such file.
        """
        folder, name = os.path.split(relative_path)
        if os.path.isabs(relative_path) or "\0" in relative_path or name in ("", ".", ".."):
            raise ValueError(f"{relative_path!r} is no path relative to {self.folder}")
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
