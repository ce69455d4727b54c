"""Reads http:// and https:// addresses through urllib. Callers use pipeline.storage.files.

It reads public data only: it cannot write, list or log in. Proxy variables such as $http_proxy are respected.
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

from pipeline.console.secrets import shown, shown_refused
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
        StorageError: The address is not valid for a request, or contains a user name.
    """
    try:
        parts = urlsplit(uri)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not uri.isascii() or not uri.isprintable() or " " in uri:
        raise StorageError(
            f"address {shown_refused(uri)!r}: expected https://host/path (or http://), with non-ASCII characters as %.."
        )
    if parts.username is not None:
        raise StorageError(f"an address on {parts.hostname}: a user's name and password in it are not supported")
    return urlunsplit(parts._replace(path=parts.path if parts.query else parts.path.rstrip("/"), fragment=""))


def join(uri: str, *names: str) -> str:
    """The address of a file below another address (or beside it, with ..) on the same server."""
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


def size(uri: str) -> int:
    """Size of the file in bytes."""
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
    """The file, or a part of it, as a stream that can be read once and survives broken connections."""
    return ResumingStream(shown(uri), functools.partial(_open_at, uri), start, length)


def _open_at(uri: str, position: int, stop: int | None, tag: str) -> Answer:
    """One request for an object's bytes; see resuming.OpenAt."""
    asked = {"Range": range_header(position, stop)}
    # Servers compare only strong ETags; ResumingStream compares other tags when the answer has come.
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
    """The server's answer with its body unread.

    Raises:
        HTTPError: Status 412 or 416, which only the caller can explain.
    """
    # With a compressed body, byte counts and ranges would not refer to the file.
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
    """Follows redirects to http(s) only; urllib's own handler would also go to ftp."""

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
    """Turns urllib's exceptions into FileNotFoundError and StorageError, except for status 412 and 416."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (412, 416):
            raise
        if error.code in (404, 410):
            raise FileNotFoundError(f"no object {where}") from error
        kind = PassingError if is_passing(error.code) else StorageError
        hint = "; only public files can be read over http" if error.code in (401, 403) else ""
        raise kind(f"{where}: answered {error.code} ({error.reason}){hint}") from error
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        kind = StorageError if isinstance(reason, ssl.SSLCertVerificationError) else PassingError
        raise kind(f"{where}: could not be read ({shown(str(reason))})") from error
