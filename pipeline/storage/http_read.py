"""The part of storage that reads http:// and https:// addresses, through urllib. Callers use pipeline.storage.files.

For data that somebody serves to everybody: nothing is written, listed or signed in to. $http_proxy and its like hold.
"""

import contextlib
import functools
import http.client
import posixpath
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO
from urllib.parse import quote, urlsplit, urlunsplit

from pipeline.storage import resuming
from pipeline.storage.errors import PassingError, StorageError
from pipeline.storage.resuming import (
    Answer,
    Patience,
    ResumingStream,
    beyond_end,
    is_passing,
    place_of,
    range_header,
    replaced,
)

SCHEMES = ("http://", "https://")


def checked(uri: str) -> str:
    """The address without a slash or a #fragment at its end.

    Raises:
        StorageError: it is not one that a request can be made of, or it has a password in it.
    """
    try:
        parts = urlsplit(uri)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not uri.isascii() or not uri.isprintable() or " " in uri:
        raise StorageError(
            f"address {shown(uri)!r}: expected https://host/path (or http://), with other signs than ASCII's as %.."
        )
    if parts.username is not None:
        raise StorageError(f"an address on {parts.hostname}: a user's name and password in it are not supported")
    return urlunsplit(parts._replace(path=parts.path if parts.query else parts.path.rstrip("/"), fragment=""))


def join(uri: str, *names: str) -> str:
    """The address of a file below (or, with .., beside) another on the same server."""
    parts = urlsplit(checked(uri))
    if parts.query:
        raise StorageError(f"{'/'.join(names)!r} under {shown(uri)}: an address with ? has nothing below it")
    path = posixpath.normpath(posixpath.join(parts.path.lstrip("/"), *(quote(name) for name in names)))
    if path == ".." or path.startswith("../"):
        raise StorageError(f"{'/'.join(names)!r} under {uri}: leads out of the server")
    return urlunsplit(parts._replace(path="" if path == "." else f"/{path}"))


def basename(uri: str) -> str:
    """The last part of the address's path."""
    return posixpath.basename(urlsplit(uri).path)


def shown(uri: str) -> str:
    """The address as it may be printed: what follows ? is often a signature that opens the file to anybody."""
    address, mark, _ = uri.partition("?")
    return f"{address}?..." if mark else address


def size(uri: str) -> int:
    """Bytes of what is served there."""
    patience = Patience()
    while True:
        try:
            answer = _answer(uri, "HEAD", {})
        except PassingError as error:
            patience.failed(error)
            continue
        with answer:
            return place_of(shown(uri), None, answer.headers["Content-Length"])[1]


def open_stream(uri: str, start: int = 0, length: int | None = None) -> ResumingStream:
    """What is served there, or a part of it, as a stream that can be read once and outlives its connections."""
    return ResumingStream(shown(uri), functools.partial(_open_at, uri), start, length)


def _open_at(uri: str, position: int, stop: int | None, tag: str) -> Answer:
    """One request for an object's bytes; see resuming.OpenAt."""
    asked = {"Range": range_header(position, stop)}
    # What is no strong ETag, no server compares: it is compared here, when the answer has come.
    asked["If-Match"] = tag if tag.startswith('"') else None
    try:
        answer = _answer(uri, "GET", {name: value for name, value in asked.items() if value})
    except urllib.error.HTTPError as error:
        raise (replaced(shown(uri)) if error.code == 412 else beyond_end(shown(uri), position, tag)) from error
    headers = answer.headers
    with contextlib.ExitStack() as stack:
        stack.enter_context(answer)
        begin, size = place_of(shown(uri), headers["Content-Range"], headers["Content-Length"])
        stack.pop_all()
    found = headers["ETag"] or headers["Last-Modified"] or ""
    return Answer(answer, begin, size, found, (http.client.HTTPException, OSError))


def _answer(uri: str, method: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The server's answer, its body unread.

    Raises:
        HTTPError: 412 or 416, which only the one who asked can explain.
    """
    # Compressed on the way, bytes could be neither counted nor ranged over.
    headers = headers | {"Accept-Encoding": "identity", "User-Agent": "hst"}
    request = urllib.request.Request(checked(uri), headers=headers, method=method)
    with _errors_of(shown(uri)):
        answer: http.client.HTTPResponse = urllib.request.build_opener(_HttpOnly).open(
            request, timeout=resuming.READ_TIMEOUT_S
        )
    if answer.status not in (200, 206):
        answer.close()
        raise StorageError(f"{shown(uri)}: answered {answer.status}, expected 200, or 206 for a part")
    return answer


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Redirects are followed to http(s) alone; urllib's own would go to ftp as well."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.startswith(SCHEMES):
            raise StorageError(f"{shown(req.full_url)}: redirects to {shown(newurl)}, expected http:// or https://")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _errors_of(where: str) -> Iterator[None]:
    """Turns what urllib raises into FileNotFoundError and StorageError, but for 412 and 416."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (412, 416):
            raise
        if error.code in (404, 410):
            raise FileNotFoundError(f"no object {where}") from error
        kind = PassingError if is_passing(error.code) else StorageError
        hint = "; only what everybody may read is read from http" if error.code in (401, 403) else ""
        raise kind(f"{where}: answered {error.code} ({error.reason}){hint}") from error
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        kind = StorageError if isinstance(reason, ssl.SSLCertVerificationError) else PassingError
        raise kind(f"{where}: could not be read ({reason})") from error
