"""How many tasks fit on a cluster at once, and what each of their workers gets. Refuses what can never be placed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.progress import counted

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
    """1, or the fraction of a GPU that each of several tasks has; 0 on a cluster without GPUs."""

    @property
    def shares_gpu(self) -> bool:
        """Whether ranks may meet on one card, where NCCL does not work."""
        return 0 < self.gpus_per_worker < 1

    def __str__(self) -> str:
        device = f"{self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "no GPU"
        workers = f"{counted(self.num_workers, 'worker')} of {counted(self.cpus_per_worker, 'CPU')} and {device}"
        return f"{counted(self.concurrent, 'task')} at once, each {workers}"


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the trials of one task's search have, out of what its training will have."""

    at_once: int
    """Trials."""
    cpus: int
    """CPUs, and torch threads, of each."""
    gpus: float
    """Of each: 1, or the fraction of a GPU that several share; 0 without GPUs."""


def plan_trials(nodes: Sequence[dict[str, float]], plan: Plan, at_once: int | None) -> Room:
    """Divide a task's share among trials.

    Args:
        nodes: as for `plan_resources`.
        plan: what the task's training has.
        at_once: trials at once; None: one a worker where there are GPUs, else one a CPU as far as memory goes.

    Raises:
        ValueError: more trials than CPUs.
    """
    cpus = plan.num_workers * plan.cpus_per_worker
    if at_once is None:
        fitting = max(1, _fitting_in_memory(nodes) // plan.concurrent)
        at_once = plan.num_workers if plan.gpus_per_worker else min(cpus, fitting)
    if at_once > cpus:
        raise ValueError(f"--trials-at-once {at_once}: each trial needs a CPU, and a task's share is {cpus}")
    sharing = math.ceil(at_once / plan.num_workers)
    gpus = math.floor(1e4 * plan.gpus_per_worker / sharing) / 1e4
    return Room(at_once=at_once, cpus=max(1, plan.cpus_per_worker // sharing), gpus=gpus)


def plan_resources(
    nodes: Sequence[dict[str, float]], *, num_tasks: int, num_workers: int, max_concurrent: int | None
) -> Plan:
    """Divide the cluster. Where it has GPUs, only the nodes that have them train.

    Args:
        nodes: resources of each living node: ``CPU``, ``GPU``, ``memory`` in bytes.
        num_tasks: tasks to train.
        num_workers: workers a task.
        max_concurrent: most tasks at once; None lets every worker have a GPU of its own, or a CPU where there are none.

    Raises:
        ValueError: the workers of one task cannot be placed, with what the cluster has.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    nodes = [node for node in nodes if node.get("GPU", 0) >= 1] if gpus else nodes
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    if cpus < num_workers:
        where = "nodes with GPUs" if gpus else "nodes"
        raise ValueError(f"--num-workers {num_workers}: each needs a CPU, and the cluster's {where} have {cpus}")
    default = max(1, (gpus or min(cpus, _fitting_in_memory(nodes))) // num_workers)
    plan = Plan(num_workers=num_workers, concurrent=0, cpus_per_worker=1, gpus_per_worker=0)
    for concurrent in range(min(num_tasks, max_concurrent or default, cpus // num_workers), 0, -1):
        needed = concurrent * num_workers
        share = 0.0 if not gpus else 1.0 if needed <= gpus else math.floor(1e4 / math.ceil(needed / gpus)) / 1e4
        plan = replace(plan, concurrent=concurrent, gpus_per_worker=share)
        if _places(nodes, plan) >= needed:
            break
    else:
        raise ValueError(f"--num-workers {num_workers}: no nodes have a CPU and a GPU's share for each of them at once")
    while _places(nodes, wider := replace(plan, cpus_per_worker=plan.cpus_per_worker + 1)) >= needed:
        plan = wider
    return plan


def _places(nodes: Sequence[dict[str, float]], plan: Plan) -> int:
    """Workers of the plan that the nodes hold together; a worker never spans two, nor two cards."""
    total = 0
    for node in nodes:
        by_cpu = int(node.get("CPU", 0)) // plan.cpus_per_worker
        by_gpu = int(node.get("GPU", 0)) * int(1 / plan.gpus_per_worker) if plan.gpus_per_worker else by_cpu
        total += min(by_cpu, by_gpu)
    return total


def _fitting_in_memory(nodes: Sequence[dict[str, float]]) -> int:
    """Workers that fit in memory; one if there is little; as many as you like on a node that does not say."""
    if any("memory" not in node for node in nodes):
        return 10**6
    return max(1, sum(int(node["memory"] // MEMORY_PER_WORKER) for node in nodes))
