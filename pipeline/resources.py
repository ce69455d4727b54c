"""How many tasks fit on a cluster at once, and what each of their workers gets. Refuses what can never be placed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MEMORY_PER_WORKER = 2.5e9
"""Bytes of one train worker with its share of Ray's helper actors on a CPU node (measured: 1.2 GB without data)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the fan-out asks of Ray."""

    num_workers: int
    """Train workers a task."""
    concurrent: int
    """Tasks at once."""
    cpus_per_worker: int
    """CPUs, and torch threads, of a worker."""
    gpus_per_worker: float
    """1 or more tasks' fraction of one GPU; 0 on a CPU cluster."""

    @property
    def shares_gpu(self) -> bool:
        """Whether ranks may meet on one card, where NCCL does not work."""
        return 0 < self.gpus_per_worker < 1

    def __str__(self) -> str:
        device = f"{self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "no GPU"
        workers = f"{self.num_workers} worker(s) of {self.cpus_per_worker} CPU(s) and {device}"
        return f"{self.concurrent} task(s) at once, each {workers}"


def plan_resources(
    nodes: Sequence[dict[str, float]], *, num_tasks: int, num_workers: int, max_concurrent: int | None
) -> Plan:
    """Divide the cluster.

    Args:
        nodes: resources of each living node: ``CPU``, ``GPU``, ``memory`` in bytes.
        num_tasks: tasks to train.
        num_workers: workers a task.
        max_concurrent: most tasks at once; None lets every worker have a CPU (a GPU, where there are GPUs) of its own.

    Raises:
        ValueError: the workers of one task cannot be placed, with what the cluster has.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if sum(cpus) < num_workers:
        raise ValueError(
            f"--num-workers {num_workers}: each needs a CPU, and the cluster has {sum(cpus)} in {len(nodes)} node(s)"
        )
    if sum(gpus):
        concurrent = min(num_tasks, max_concurrent or max(1, sum(gpus) // num_workers))
    else:
        by_memory = sum(int(node.get("memory", math.inf) // MEMORY_PER_WORKER) for node in nodes if node.get("memory"))
        default = max(1, min(sum(cpus), by_memory or sum(cpus)) // num_workers)
        concurrent = min(num_tasks, max_concurrent or default)
    concurrent = max(1, min(concurrent, sum(cpus) // num_workers))
    slots = concurrent * num_workers
    gpus_per_worker = 0.0
    if sum(gpus):
        gpus_per_worker = 1.0 if slots <= sum(gpus) else math.floor(1e4 / math.ceil(slots / sum(gpus))) / 1e4
    per_worker = max(1, sum(cpus) // slots)
    while per_worker > 1 and sum(c // per_worker for c in cpus) < slots:
        per_worker -= 1
    return Plan(
        num_workers=num_workers, concurrent=concurrent, cpus_per_worker=per_worker, gpus_per_worker=gpus_per_worker
    )
