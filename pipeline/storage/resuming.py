"""A remote object as a stream that goes on where its connection broke off.

Knows no protocol: it is given a function that opens the object at a position. After a broken or ended connection, a
stall or a server's error, the object is opened again at the first byte that has not been read, and must then still be
the same object.
"""

import io
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.storage.errors import PassingError, StorageError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""How long a connection may be silent."""
ATTEMPTS = 5
"""Failures in a row, without a byte between them, that end a transfer."""
TOTAL_ATTEMPTS = 100
"""Failures that end a transfer though it moves: what moves by a few bytes each time would never end."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 16.0

# Room that is made for what a connection may give at once, and is mostly not filled.
_PIECE_BYTES = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
# Several processes that lost the same server must not come back in step; this is no draw of an experiment.
_jitter = random.SystemRandom()


class RawBody(Protocol):
    """What a library gives as a body that is still on the wire."""

    def read1(self, amt: int, /) -> bytes:
        """Up to so many bytes, as soon as there are some; none at the end."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A server's answer to a request for an object from a position on."""

    body: RawBody
    position: int
    """Of the body's first byte in the object."""
    size: int
    """Bytes of the whole object."""
    tag: str
    """What changes with the object's content (an ETag); empty where the server says nothing of that kind."""
    faults: tuple[type[Exception], ...]
    """What `body.read1` raises where the connection breaks."""


OpenAt = Callable[[int, int | None, str], Answer]
"""open_at(position, stop, tag): the object's bytes from position to stop (None: its end), if its tag still is that one
(empty: whatever it is). Raises PassingError for what is worth another attempt, any other error for what is not."""


class Patience:
    """How many failures a transfer may have; waits after each, longer each time."""

    def __init__(self) -> None:
        self._failures = self._in_a_row = 0

    def progressed(self) -> None:
        self._in_a_row = 0

    def failed(self, error: PassingError) -> None:
        """Waits, or raises a StorageError where there were too many failures."""
        self._failures += 1
        self._in_a_row += 1
        if self._in_a_row >= ATTEMPTS or self._failures >= TOTAL_ATTEMPTS:
            raise StorageError(f"{error}; given up after {self._failures} failures") from error
        wait = min(FIRST_WAIT_S * 2 ** (self._in_a_row - 1), LONGEST_WAIT_S)
        time.sleep(wait * _jitter.uniform(0.5, 1))


class ResumingStream(io.RawIOBase):
    """The bytes [start, start + length) of an object, front to back; to its end where no length is given.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: it was refused, is shorter than that, was replaced while it was read, or did not come through.
    """

    def __init__(self, uri: str, open_at: OpenAt, start: int = 0, length: int | None = None) -> None:
        super().__init__()
        self.uri, self._open_at, self._position = uri, open_at, start
        self._patience = Patience()
        self._answer: Answer | None = None
        self._tag = ""
        self._stop = None if length is None else start + length
        first = self._opened()
        if self._stop is not None and self._stop > first.size:
            first.body.close()
            raise StorageError(f"{uri}: has {first.size} bytes, not the {self._stop} that were to be read to")
        self._answer = first
        self._end = first.size if self._stop is None else self._stop
        self._tag = first.tag
        self.size = first.size
        """Bytes of the whole object."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError(f"{self.uri}: read after its stream was closed")
        wanted = min(len(buffer), self._end - self._position, _PIECE_BYTES)
        data = b""
        while wanted and not data:
            if self._answer is None:
                self._answer = self._opened_again()
            try:
                data = self._answer.body.read1(wanted)
            except self._answer.faults as error:
                self._broke_off(f"broke off ({error})", error)
            else:
                if not data:
                    self._broke_off("ended", None)
        buffer[: len(data)] = data
        self._position += len(data)
        if data:
            self._patience.progressed()
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _opened(self) -> Answer:
        while True:
            try:
                answer = self._open_at(self._position, self._stop, self._tag)
            except PassingError as error:
                self._patience.failed(error)
                continue
            if answer.position == self._position:
                return answer
            answer.body.close()
            if self._tag and self._tag != answer.tag:
                raise replaced(self.uri)
            raise StorageError(
                f"{self.uri}: asked for byte {self._position}, the server began at {answer.position}; it serves no "
                "ranges, which a part of an object, or going on after a broken connection, needs"
            )

    def _opened_again(self) -> Answer:
        answer = self._opened()
        # Some servers do not look at If-Match.
        if (answer.tag, answer.size) != (self._tag, self.size):
            answer.body.close()
            raise replaced(self.uri)
        return answer

    def _broke_off(self, how: str, error: Exception | None) -> None:
        self._drop()
        fault = PassingError(f"{self.uri}: the connection {how} {self._end - self._position} bytes before the end")
        fault.__cause__ = error
        self._patience.failed(fault)

    def _drop(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.body.close()


def replaced(uri: str) -> StorageError:
    """The error for an object that is not the one any more whose first bytes were read."""
    return StorageError(f"{uri}: was replaced while it was read; read it again from the start")


def beyond_end(uri: str, position: int, tag: str) -> StorageError:
    """The error for a server's "range not satisfiable"."""
    return replaced(uri) if tag else StorageError(f"{uri}: ends before byte {position}, which was to be read")


def is_passing(status: int) -> bool:
    """Whether an HTTP status is worth another attempt."""
    return status >= 500 or status in (408, 429)


def range_header(position: int, stop: int | None) -> str | None:
    """The value of `Range`; None where the whole object is meant."""
    if stop is None:
        return f"bytes={position}-" if position else None
    return f"bytes={position}-{stop - 1}"


def place_of(uri: str, content_range: str | None, content_length: str | int | None) -> tuple[int, int]:
    """Where a body begins in its object, and the whole object's bytes, from the answer's headers.

    Raises:
        StorageError: the headers do not say.
    """
    if content_range is not None and (match := _CONTENT_RANGE.fullmatch(content_range)):
        return int(match[1]), int(match[2])
    if content_range is not None or content_length is None:
        raise StorageError(f"{uri}: the server does not say how long it is, so nobody could tell whether it came whole")
    return 0, int(content_length)
