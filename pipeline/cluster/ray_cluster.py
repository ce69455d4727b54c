"""Joins a running Ray cluster, or starts a local one on loopback for the duration of a job."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hst import plain
from pipeline.cluster.answering import RayUnavailableError, check_answers
from pipeline.cluster.ray_environment import WORKER_ENVIRONMENT
from pipeline.console.secrets import error_text, shown


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Connects this driver during a block: to the cluster at ``RAY_ADDRESS``, else to a new one on loopback.

    After Ctrl-C or SIGTERM the caller must leave with ``os._exit``; what Ray runs for it ends with the process.

    Raises:
        RayUnavailableError: No Ray answers at the address, or a local one does not start.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    _init(os.environ.get("RAY_ADDRESS"))
    if in_main_thread:
        signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise  # no shutdown: threads still wait for Ray, which would end this process with an exit status of its own
    except BaseException:
        _shut_down(handler if in_main_thread else None)
        raise
    _shut_down(handler if in_main_thread else None)


def _shut_down(handler: Any) -> None:
    """Leaves Ray; ``handler`` is the SIGTERM handler to restore, if any."""
    ray.shutdown()
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _init(address: str | None) -> None:
    if address:
        check_answers(address)
    local = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            **({} if address else local),
            runtime_env={"env_vars": WORKER_ENVIRONMENT | plain.environment()},
            log_to_driver=False,
            logging_level="warning",
        )
    except Exception as error:  # Ray raises OSError, ValueError, ConnectionError and bare Exception for its own faults
        reason = error_text(error)
        if address:
            raise RayUnavailableError(f"RAY_ADDRESS={shown(address)}: Ray could not be joined: {reason}") from error
        logs = os.path.join(get_default_ray_temp_dir(), "session_latest", "logs")
        where = f"; its logs are in {logs}" if os.path.isdir(logs) else ""
        raise RayUnavailableError(
            f"a local Ray did not start: {reason}{where}; RAY_TMPDIR can name another folder for it, with a short path"
        ) from error


class WorkerError(RuntimeError):
    """A call on a worker failed or did not return in time. The message gives the reason."""


def call_on_worker(
    function: Callable[..., Any],
    *arguments: Any,
    cpus: int,
    gpus: float,
    patience: float,
    node: str | None = None,
    **options: Any,
) -> Any:
    """Calls a function in a fresh process on a node with enough free CPUs and GPUs, and returns its result.

    Args:
        function: A function of a module.
        arguments: Its positional arguments; Ray replaces a reference to its object store by the object.
        cpus: CPUs reserved for the call.
        gpus: GPUs reserved for the call.
        patience: Seconds within which the call must return.
        node: Id of the node; None for any.
        options: Its keyword arguments.

    Raises:
        WorkerError: The call found no free node in time, took too long, failed or was killed.
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
    """Replaces Ray's handler, which aborts the process after three seconds even if something is being saved."""
    sys.exit(128 + signum)


def living_nodes() -> list[dict[str, float]]:
    """Resources of each living node: ``CPU``, ``GPU``, ``memory`` in bytes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def this_node() -> str:
    """Id of the node on which this process runs."""
    return str(ray.get_runtime_context().get_node_id())
