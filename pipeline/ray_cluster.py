"""Join the Ray cluster that is there, or start a local one on loopback for the time of a job."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray

from pipeline.ray_environment import WORKER_ENVIRONMENT


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Within: a connected driver. ``RAY_ADDRESS`` names a cluster; without it one is started on loopback.

    Told to stop (Ctrl-C, SIGTERM), the caller leaves with ``os._exit``; what Ray runs for it ends with the process.
    """
    local = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(
        **({} if os.environ.get("RAY_ADDRESS") else local),
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
        log_to_driver=False,
        logging_level="warning",
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise  # threads still wait for Ray, which, shut down under them, would end this process with its own status
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _leave(signum: int, frame: Any) -> None:
    """Takes the place of Ray's handler, which aborts the process three seconds later, whatever is being saved."""
    sys.exit(128 + signum)


def living_nodes() -> list[dict[str, float]]:
    """Resources of each node: ``CPU``, ``GPU``, ``memory`` in bytes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
