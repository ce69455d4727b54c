"""Join the Ray cluster that is there, or start a local one on loopback for the time of a job."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hst import plain
from pipeline.cluster.ray_environment import WORKER_ENVIRONMENT


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Within: a connected driver. ``RAY_ADDRESS`` names a cluster; without it one is started on loopback.

    Told to stop (Ctrl-C, SIGTERM), the caller leaves with ``os._exit``; what Ray runs for it ends with the process.
    """
    local = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(
        **({} if os.environ.get("RAY_ADDRESS") else local),
        runtime_env={"env_vars": WORKER_ENVIRONMENT | plain.environment()},
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


class WorkerError(RuntimeError):
    """A call on a worker that did not come back, with the reason."""


def call_on_worker(
    function: Callable[..., Any],
    *arguments: Any,
    cpus: int,
    gpus: float,
    patience: float,
    node: str | None = None,
    **options: Any,
) -> Any:
    """What a function returns in a fresh process on a node that has so many CPUs and GPUs for it.

    Args:
        function: of a module.
        arguments: its positional ones; a reference to Ray's object store stands for what is there.
        cpus: that are kept for it.
        gpus: that are kept for it.
        patience: seconds until it must be back.
        node: its id; None: any.
        options: its keyword arguments.

    Raises:
        WorkerError: there was no room for it in time, it took too long, failed or was killed.
    """
    where = "DEFAULT" if node is None else NodeAffinitySchedulingStrategy(node, soft=False)
    once = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1, scheduling_strategy=where)(function)
    under_way = once.remote(*arguments, **options)
    if not ray.wait([under_way], timeout=patience)[0]:
        ray.cancel(under_way, force=True)
        raise WorkerError(f"no worker of {cpus} CPUs and {gpus:g} GPUs was back within {patience:.0f} s")
    try:
        return ray.get(under_way)
    except RayError as error:
        raise WorkerError(str(error).strip().splitlines()[-1]) from error


def _leave(signum: int, frame: Any) -> None:
    """Takes the place of Ray's handler, which aborts the process three seconds later, whatever is being saved."""
    sys.exit(128 + signum)


def living_nodes() -> list[dict[str, float]]:
    """Resources of each node: ``CPU``, ``GPU``, ``memory`` in bytes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def this_node() -> str:
    """The id of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())
