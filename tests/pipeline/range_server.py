"""A small HTTP server of bytes in memory. It supports ranges, ETags and conditions; each can be switched off."""

import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer:
    """Serves `objects` (by path) on 127.0.0.1 until it is closed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.gets: list[str] = []
        self.knows_ranges = True
        self.knows_length = True
        self.knows_if_match = True
        self.etag = '"{}"'
        """Template of the ETag, filled with the content's hash: 'W/"{}"' makes a weak tag, '' none."""
        self.modified = ""
        """Value of Last-Modified; empty: not sent."""
        self.gate = threading.Event()
        """The server sends the second half of a body when this is set."""
        self.gate.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


def _handler_of(served: RangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            served.gets.append(self.path)
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if path not in served.objects:
                self.send_error(404)
                return
            data = served.objects[path]
            tag = served.etag.format(hashlib.sha256(data).hexdigest()[:16])
            condition = self.headers["If-Match"]
            if served.knows_if_match and condition is not None and condition != tag:
                self.send_error(412)
                return
            begin, end = 0, len(data)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
            if asked and served.knows_ranges:
                begin, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
                if begin >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            else:
                self.send_response(200)
            if served.knows_length:
                self.send_header("Content-Length", str(end - begin))
            if tag:
                self.send_header("ETag", tag)
            if served.modified:
                self.send_header("Last-Modified", served.modified)
            self.end_headers()
            if body:
                half = (begin + end) // 2
                with contextlib.suppress(ConnectionError):  # the client has hung up
                    self.wfile.write(data[begin:half])
                    served.gate.wait(60)
                    self.wfile.write(data[half:end])

    return Handler
