"""torch's process group for Ray Train workers. It listens only on the node's own address.

With Ray's torch backend, torch's rendezvous store listens on all addresses, even for one worker, and does not
authenticate anybody. Here one worker needs no group. Several workers meet at the address by which Ray knows rank 0's
node: 127.0.0.1 on a local cluster.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

TIMEOUT = timedelta(minutes=10)
"""Timeout of every collective. Ray notices a lost worker long before."""

_listening: list[socket.socket] = []


@dataclass
class OwnAddressConfig(TorchConfig):
    """Selects this module's backend. Its field ``backend`` is gloo or nccl, as in `TorchConfig`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _OwnAddressBackend


class _OwnAddressBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group, backend_config: OwnAddressConfig) -> None:  # type: ignore[no-untyped-def]
        size = len(worker_group)
        if size == 1:
            return
        host, port = worker_group.execute_single(0, _listen)
        joins = [
            worker_group.execute_single_async(rank, _join, host, port, rank, size, backend_config.backend)
            for rank in range(size)
        ]
        ray.get(joins)

    def on_shutdown(self, worker_group, backend_config: OwnAddressConfig) -> None:  # type: ignore[no-untyped-def]
        if len(worker_group) > 1:
            worker_group.execute(_leave)


def _listen() -> tuple[str, int]:
    """On rank 0, opens a socket on the node's address for the rendezvous store."""
    host = ray.util.get_node_ip_address()
    listening = socket.create_server((host, 0), backlog=128)
    _listening.append(listening)
    return host, listening.getsockname()[1]


def _join(host: str, port: int, rank: int, size: int, backend: str) -> None:
    if host.startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    own: dict[str, Any] = {"master_listen_fd": _listening.pop().detach()} if rank == 0 else {}
    store = dist.TCPStore(host, port, size, rank == 0, TIMEOUT, wait_for_workers=False, **own)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
