"""A part of a local file as a stream."""

import io
from typing import IO, Any

from pipeline.storage.errors import StorageError


class FileRange(io.RawIOBase):
    """The bytes [start, start + length) of an open file, read in order. Closing it closes the file.

    Raises:
        StorageError: The file ends before the range does.
    """

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        super().__init__()
        self._file, self._left = file, length
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise StorageError(
                f"{self._file.name}: ends {self._left} bytes before the end of the part that was to be read"
            )
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
