"""Whether a Ray answers at an address. Ray itself tries for two minutes and a half, and then ends the process."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit

from ray._private import services
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from pipeline.console.secrets import error_text, shown

CONNECT_S = 4.0
"""How long a connection to the host may take."""
ANSWER_S = 8.0
"""How long the head's answer may take after that."""


class RayUnavailableError(RuntimeError):
    """No Ray answers at ``RAY_ADDRESS``, or a local one does not start. The message says what to do."""


def check_answers(address: str) -> None:
    """Raises RayUnavailableError if no Ray answers at an address, after 12 seconds at most.

    Args:
        address: A value of ``RAY_ADDRESS``: ``HOST:PORT``, ``auto`` or ``ray://HOST:PORT``. With ``auto`` and no trace
            of a cluster it is left to ``ray.init``, which says so at once; so is the answer of a ``ray://``.
    """
    try:
        client = address.startswith("ray://")
        head = (
            urlsplit(address).netloc.rpartition("@")[2] if client else services.canonicalize_bootstrap_address(address)
        )
        if head is None:
            return
        _connect(head)
        if not client:
            _ask(head)
    except (OSError, ValueError) as error:
        raise RayUnavailableError(
            f"RAY_ADDRESS={shown(address)}: no Ray answers there ({error_text(error)}); expected HOST:PORT of a "
            "running cluster's head, or ray://HOST:PORT; unset it to start a local Ray"
        ) from error


def _connect(head: str) -> None:
    parts = urlsplit(f"//{head}")
    if not parts.hostname or not parts.port:
        raise ValueError("it has no host or no port")
    socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_S).close()


def _ask(head: str) -> None:
    """Asks a head for its cluster's id. Ray's own call cannot be broken off, so it is left behind if it takes long."""
    answers: list[str] = []
    faults: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(str(GcsClient(address=head).cluster_id))
        except Exception as error:  # raised below, in the caller's thread
            faults.append(error)

    thread = threading.Thread(target=ask, name="ask-ray", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not answers:
        reason = error_text(faults[0]) if faults else f"it is silent for {ANSWER_S:g} s"
        raise TimeoutError(f"something listens there, but it does not answer as Ray does: {reason}")
