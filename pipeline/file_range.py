"""A part of a local file as a stream."""

import io
from typing import Any

from pipeline.storage_errors import StorageError


class FileRange(io.RawIOBase):
    """The bytes [start, start + length) of a file, front to back.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it ends before that.
    """

    def __init__(self, path: str, start: int, length: int) -> None:
        super().__init__()
        self._path, self._left = path, length
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this stream
        self._file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise StorageError(f"{self._path}: ends {self._left} bytes before the end of the part that was to be read")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
