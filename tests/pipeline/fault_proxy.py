"""A proxy between a client and a real HTTP server. It breaks answers on demand and records the requests.

It changes none of a request's signed bytes, so the signature (which covers Host) stays valid.
"""

import fcntl
import socket
import struct
import termios
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What happens to the answer to one request."""

    kind: str
    """One of: status (answer with `status`), hang up (before asking the server), lose (drop the server's answer),
    reset, cut (close the connection) or stall."""
    after: int = 0
    """Bytes of the body that are passed on before reset, cut or stall."""
    status: int = 0
    """HTTP status of the answer, for kind status."""


@dataclass
class Request:
    """One request that the proxy received."""

    method: str
    path: str
    headers: dict[str, str]
    served: int = 0
    """Bytes of the body that were passed on."""
    status: int = 0
    """HTTP status of the answer."""


class FaultProxy:
    """Listens on 127.0.0.1 until it is closed. The n-th GET gets the n-th fault of `plan`; later ones pass."""

    def __init__(self, upstream_port: int) -> None:
        self.plan: list[Fault | None] = []
        self.methods = {"GET"}
        """Methods of the requests to which the plan applies."""
        self.requests: list[Request] = []
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def ranges(self) -> list[str | None]:
        """The Range header of each GET."""
        return [request.headers.get("range") for request in self.requests if request.method == "GET"]

    def served(self) -> int:
        """Total bytes of bodies that were passed on."""
        return sum(request.served for request in self.requests)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._upstream_port)) as upstream:
            head, sent = _read_head(client)
            if not head:
                return
            first, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
            request = Request(method, path, headers)
            with self._lock:
                self.requests.append(request)
                fault = self.plan.pop(0) if method in self.methods and self.plan else None
            if fault is not None and fault.kind == "hang up":
                return
            if fault is not None and fault.kind == "status":
                request.status = fault.status
                client.sendall(
                    f"HTTP/1.1 {fault.status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )
                return
            upstream.sendall(_with_close(head))
            if headers.get("expect"):
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._upload(sent, client, upstream, int(headers.get("content-length", 0)))
            answer, body = _read_head(upstream)
            request.status = int(answer.split(b" ")[1])
            if fault is not None and fault.kind == "lose":
                return
            try:
                client.sendall(_with_close(answer))
                self._pass_on(body, upstream, client, request, fault)
            except OSError:  # the client has hung up
                return

    def _upload(self, data: bytes, client: socket.socket, upstream: socket.socket, length: int) -> None:
        """Passes on the body of a request."""
        while True:
            upstream.sendall(data)
            length -= len(data)
            if length <= 0 or not (data := client.recv(1 << 16)):
                return

    def _pass_on(
        self, data: bytes, upstream: socket.socket, client: socket.socket, request: Request, fault: Fault | None
    ) -> None:
        """Passes on the body of an answer, up to the fault."""
        while True:
            if fault is not None:
                data = data[: fault.after - request.served]
            request.served += len(data)  # before sending: a test may read it as soon as the client has the data
            client.sendall(data)
            if fault is not None and request.served == fault.after:
                break
            data = upstream.recv(1 << 16)
            if not data:
                return
        if fault.kind == "stall":
            client.settimeout(30)
            client.recv(1)  # until the client hangs up
        elif fault.kind == "reset":
            while struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0]:  # some bytes unsent
                time.sleep(0.001)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """Start line and headers, and the part of the body that has arrived with them."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(1 << 16)
        if not chunk:
            return b"", b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def _with_close(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])
