"""A stream of a remote object that resumes where its connection broke.

It knows no protocol: the caller gives a function that opens the object at a position. After a broken connection, a
stall or a server error, the stream opens the object again at the first unread byte, and checks that the object is
still the same.
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
"""Consecutive failures, without a byte between them, that end a transfer."""
TOTAL_ATTEMPTS = 100
"""Failures that end a transfer even if it progresses: with a few bytes per attempt it would never end."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 16.0

# Most bytes of one read. The library allocates a buffer of this size, which the connection mostly does not fill.
_PIECE_BYTES = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
# Processes that lost the same server must not all retry at once. Needs no seed: no result depends on it.
_jitter = random.SystemRandom()


class RawBody(Protocol):
    """A response body, as an HTTP library gives it, that is still being received."""

    def read1(self, amt: int, /) -> bytes:
        """At most `amt` bytes, as soon as some have arrived; empty at the end."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A server's answer to a request for an object from some position."""

    body: RawBody
    position: int
    """Position of the body's first byte in the object."""
    size: int
    """Size of the whole object in bytes."""
    tag: str
    """Identifies the object's content (an ETag); empty if the server gives none."""
    faults: tuple[type[Exception], ...]
    """Exceptions that `body.read1` raises when the connection breaks."""


OpenAt = Callable[[int, int | None, str], Answer]
"""open_at(position, stop, tag) opens the object's bytes from position to stop (None: its end) if the object still has
this tag (empty: any tag). It raises PassingError if a retry may help, another error if not."""


class Patience:
    """Counts the failures of a transfer and waits after each, longer each time."""

    def __init__(self) -> None:
        self._failures = self._in_a_row = 0

    def progressed(self) -> None:
        self._in_a_row = 0

    def failed(self, error: PassingError) -> None:
        """Waits, or raises a StorageError after too many failures."""
        self._failures += 1
        self._in_a_row += 1
        if self._in_a_row >= ATTEMPTS or self._failures >= TOTAL_ATTEMPTS:
            raise StorageError(f"{error}; given up after {self._failures} failures") from error
        wait = min(FIRST_WAIT_S * 2 ** (self._in_a_row - 1), LONGEST_WAIT_S)
        time.sleep(wait * _jitter.uniform(0.5, 1))


class ResumingStream(io.RawIOBase):
    """The bytes [start, start + length) of an object, read in order; without a length, up to its end.

    Raises:
        FileNotFoundError: The object does not exist.
        StorageError: The server refused it, it is too short, it was replaced during the read, or retries were used up.
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
            raise StorageError(f"{uri}: has {first.size} bytes, but a part up to byte {self._stop} was requested")
        self._answer = first
        self._end = first.size if self._stop is None else self._stop
        self._tag = first.tag
        self.size = first.size
        """Size of the whole object in bytes."""

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
                "ranges, which are needed to read a part or to resume after a broken connection"
            )

    def _opened_again(self) -> Answer:
        answer = self._opened()
        # Some servers ignore If-Match.
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
    """The error for an object that changed after its first bytes were read."""
    return StorageError(f"{uri}: was replaced while it was read; read it again from the start")


def beyond_end(uri: str, position: int, tag: str) -> StorageError:
    """The error for the status "range not satisfiable"."""
    return replaced(uri) if tag else StorageError(f"{uri}: ends before byte {position}, which was to be read")


def is_passing(status: int) -> bool:
    """Whether a request with this HTTP status is worth a retry."""
    return status >= 500 or status in (408, 429)


def range_header(position: int, stop: int | None) -> str | None:
    """The value of the `Range` header; None for the whole object."""
    if stop is None:
        return f"bytes={position}-" if position else None
    return f"bytes={position}-{stop - 1}"


def place_of(uri: str, content_range: str | None, content_length: str | int | None) -> tuple[int, int]:
    """The position of a body in its object and the object's size in bytes, from the answer's headers.

    Raises:
        StorageError: The headers do not give them.
    """
    if content_range is not None and (match := _CONTENT_RANGE.fullmatch(content_range)):
        return int(match[1]), int(match[2])
    if content_range is not None or content_length is None:
        raise StorageError(f"{uri}: the server does not give its length, so an incomplete transfer could go unnoticed")
    return 0, int(content_length)
