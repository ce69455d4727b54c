"""A Ray cluster of several nodes on this machine's loopback, whose nodes and train workers can be killed.

The process that starts it must have called `pipeline.cluster.ray_environment.prepare_ray_environment` without
RAY_ADDRESS. The nodes, and drivers started with `LocalCluster.environment`, inherit the loopback address and the token.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import psutil
from ray.cluster_utils import Cluster

SECONDS_UNTIL_DEAD = 3
"""Seconds without an answer after which a node counts as dead. Ray's own default is 15."""
_SYSTEM_CONFIG = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": SECONDS_UNTIL_DEAD,
}
_TRAIN_WORKER = "RayTrainWorker"
_TRIAL = "ray::ImplicitFunc"


class ClusterError(RuntimeError):
    """The cluster could not be started safely."""


class LocalCluster:
    """A head without CPUs for drivers and training controllers, and nodes for train workers.

    Args:
        num_nodes: number of nodes beside the head.
        cpus_per_node: CPUs that Ray counts for each node; a process may use more.

    Raises:
        ClusterError: a process of the cluster listens beyond loopback.
    """

    def __init__(self, num_nodes: int, *, cpus_per_node: int = 1) -> None:
        # A Unix socket's path holds about 100 characters, too few for a folder deep in somebody's home.
        self._folder = tempfile.mkdtemp(prefix="hst-ray-", dir="/tmp")
        self._cpus = cpus_per_node
        head = {
            "num_cpus": 0,
            "node_ip_address": "127.0.0.1",
            "temp_dir": self._folder,
            "include_dashboard": True,  # Ray Train's clean-up after a killed driver asks the dashboard
            "dashboard_host": "127.0.0.1",
            "dashboard_port": 0,
            "dashboard_agent_listen_port": 0,
            "_system_config": _SYSTEM_CONFIG,
        }
        self._cluster = Cluster()
        self.nodes: list[Any] = []
        try:
            with self._apart():
                self._cluster.add_node(**head)
            for _ in range(num_nodes):
                self.add_node()
            if outside := _open_to_others(self._processes()):
                raise ClusterError(f"Ray listens beyond loopback, at {', '.join(outside)}: stopped again")
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """The value for RAY_ADDRESS."""
        return str(self._cluster.address)

    @property
    def dashboard(self) -> str:
        """The value for RAY_API_SERVER_ADDRESS."""
        return f"http://{self._cluster.webui_url}"

    @property
    def environment(self) -> dict[str, str]:
        """All environment variables of a driver that joins the cluster."""
        return os.environ | {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}

    def add_node(self) -> None:
        """Add a node for train workers; returns when the cluster knows it."""
        options = {"num_cpus": self._cpus, "node_ip_address": "127.0.0.1", "temp_dir": self._folder}
        self.nodes.append(self._cluster.add_node(**options))

    def kill_node(self, node: Any) -> None:
        """Kill one of ``nodes``, its raylet and all its workers, as if the machine had lost power."""
        _kill([_raylet(node), *_below(_raylet(node))])
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def train_workers(self, node: Any | None = None) -> list[psutil.Process]:
        """The processes that train, on one node or on all."""
        return self._titled(_TRAIN_WORKER, node)

    def trials(self) -> list[psutil.Process]:
        """The processes in which searches run their trials."""
        return self._titled(_TRIAL)

    def _titled(self, title: str, node: Any | None = None) -> list[psutil.Process]:
        nodes = self.nodes if node is None else [node]
        return [process for one in nodes for process in _below(_raylet(one)) if title in _title(process)]

    def actors(self) -> list[psutil.Process]:
        """Every process of the cluster that runs a Ray actor."""
        raylets = [_raylet(node) for node in [self._cluster.head_node, *self.nodes]]
        idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
        below = [process for raylet in raylets for process in _below(raylet)]
        return [process for process in below if _title(process).startswith("ray::") and _title(process) not in idle]

    def close(self) -> None:
        """End the cluster and everything that runs on it."""
        processes = self._processes()
        with self._apart():
            self._cluster.shutdown()
        _kill(processes)  # a raylet may not have had the time to end its workers
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Keep Ray's note of the cluster's address in our own folder.

        Ray writes it to a place shared by the machine, where other people's `ray.init` would find this cluster.
        """
        before = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = self._folder
        os.makedirs(os.path.join(self._folder, "ray"), exist_ok=True)
        try:
            yield
        finally:
            if before is None:
                del os.environ["RAY_TMPDIR"]
            else:
                os.environ["RAY_TMPDIR"] = before

    def _processes(self) -> list[psutil.Process]:
        found = []
        for node in self._cluster.list_all_nodes():
            for info in itertools.chain.from_iterable(node.all_processes.values()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    head = psutil.Process(info.process.pid)
                    found += [head, *_below(head)]
        return found

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.2) -> bool:
    """Wait at most ``seconds`` for the condition; return whether it came true."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    return met


def _raylet(node: Any) -> psutil.Process:
    (info,) = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:  # gone, or not reaped yet
        return ""


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil checks that the pid is still the same process
            process.kill()


def _open_to_others(processes: Iterable[psutil.Process]) -> list[str]:
    """``address:port (process)`` of every listening TCP socket that is not on loopback."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="tcp"):
                address = ipaddress.ip_address(connection.laddr.ip) if connection.laddr else None
                if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
                    address = address.ipv4_mapped
                if address and connection.status == psutil.CONN_LISTEN and not address.is_loopback:
                    found.append(f"{address}:{connection.laddr.port} ({process.name()}, pid {process.pid})")
    return sorted(found)
