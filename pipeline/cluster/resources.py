"""How many tasks fit on a cluster at once, and what each of their workers gets. Refuses what can never be placed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.console.progress import counted

MEMORY_PER_WORKER = 2.5e9
"""Bytes of one train worker with its share of Ray's helper actors on a CPU node, where nothing better is known."""


NumWorkers = int | tuple[int, int]
"""Train workers of a task; of a range, Ray takes as many as the cluster holds, and changes that while it trains."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the fan-out asks of Ray."""

    num_workers: int
    """Train workers a task; of a range, as many as the cluster holds now."""
    worker_range: tuple[int, int] | None = None
    """Fewest and most workers of a task, where Ray may change their number while it trains."""
    concurrent: int
    """Tasks at once."""
    pack: int = 1
    """Most tasks that a worker trains in one batch."""
    cpus_per_worker: int
    """CPUs, and torch threads, of a worker."""
    gpus_per_worker: float
    """1, or the fraction of a GPU that each of several tasks has; 0 on a cluster without GPUs."""

    @property
    def asked_workers(self) -> NumWorkers:
        """The number, or the range, of a task's workers: what was asked for, whatever the cluster holds now."""
        return self.worker_range or self.num_workers

    @property
    def packs(self) -> int:
        """Groups of workers at once: of one task each, or of a pack of them."""
        return math.ceil(self.concurrent / self.pack)

    @property
    def shares_gpu(self) -> bool:
        """Whether ranks may meet on one card, where NCCL does not work."""
        return 0 < self.gpus_per_worker < 1

    def __str__(self) -> str:
        device = f"{self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "no GPU"
        workers = f"{counted(self.num_workers, 'worker')} of {counted(self.cpus_per_worker, 'CPU')} and {device}"
        changing = "" if self.worker_range is None else f" ({workers_text(self.worker_range)} as nodes come and go)"
        if self.pack > 1:
            packs = f"{counted(self.packs, 'pack')} of at most {self.pack}"
            return f"{counted(self.concurrent, 'task')} at once, in {packs}, each {workers}"
        return f"{counted(self.concurrent, 'task')} at once, each {workers}{changing}"


def parse_num_workers(text: str) -> NumWorkers:
    """``2``, or a range as in ``1-4``.

    Raises:
        ValueError: it is neither.
    """
    fewest, dash, most = text.strip().partition("-")
    if not fewest.isdecimal() or (dash and not most.isdecimal()):
        raise ValueError(f"{text!r}: expected a number of workers, as in 2, or a range, as in 1-4")
    return (int(fewest), int(most)) if dash and fewest != most else int(fewest)


def workers_text(num_workers: NumWorkers) -> str:
    """The inverse of `parse_num_workers`."""
    return str(num_workers) if isinstance(num_workers, int) else "-".join(map(str, num_workers))


def counted_workers(num_workers: NumWorkers) -> str:
    """1 worker, 2 workers, 1 to 4 workers."""
    if isinstance(num_workers, int):
        return counted(num_workers, "worker")
    return f"{num_workers[0]} to {counted(num_workers[1], 'worker')}"


def worker_bounds(num_workers: NumWorkers) -> tuple[int, int]:
    """Fewest and most."""
    return (num_workers, num_workers) if isinstance(num_workers, int) else num_workers


def num_workers_fault(num_workers: NumWorkers) -> str | None:
    """What is wrong with a number or a range, whatever the cluster; None where nothing is."""
    fewest, most = worker_bounds(num_workers)
    if fewest < 1:
        return f"--num-workers {workers_text(num_workers)}: expected at least 1"
    if most < fewest:
        return f"--num-workers {workers_text(num_workers)}: expected the smaller number first, as in {most}-{fewest}"
    return None


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the trials of one task's search have, out of what its training will have."""

    at_once: int
    """Trials."""
    cpus: int
    """CPUs, and torch threads, of each."""
    gpus: float
    """Of each: 1, or the fraction of a GPU that several share; 0 without GPUs."""


def plan_trials(
    nodes: Sequence[dict[str, float]], plan: Plan, at_once: int | None, worker_bytes: float = MEMORY_PER_WORKER
) -> Room:
    """Divide a task's share among trials.

    Args:
        nodes: as for `plan_resources`.
        plan: what the task's training has.
        at_once: trials at once; None: one a worker where there are GPUs, else one a CPU as far as memory goes.
        worker_bytes: that a trial takes on a node without GPUs.

    Raises:
        ValueError: more trials than CPUs, or than memory holds.
    """
    if plan.pack > 1:  # of the worker that a pack shares
        cpus, gpus = max(1, plan.cpus_per_worker // plan.pack), math.floor(1e4 * plan.gpus_per_worker / plan.pack) / 1e4
        plan = replace(plan, cpus_per_worker=cpus, gpus_per_worker=gpus, pack=1)
    cpus = plan.num_workers * plan.cpus_per_worker
    fitting = cpus if plan.gpus_per_worker else max(1, _fitting_in_memory(nodes, worker_bytes) // plan.concurrent)
    if at_once is None:
        at_once = plan.num_workers if plan.gpus_per_worker else min(cpus, fitting)
    if at_once > cpus:
        raise ValueError(
            f"--trials-at-once {at_once}: each trial needs a CPU, and a task's share is {cpus}; use at most that"
        )
    if at_once > fitting:
        raise ValueError(
            f"--trials-at-once {at_once}: each takes about {worker_bytes / 1e9:.1f} GB; a task's share holds {fitting}"
        )
    sharing = math.ceil(at_once / plan.num_workers)
    gpus = math.floor(1e4 * plan.gpus_per_worker / sharing) / 1e4
    return Room(at_once=at_once, cpus=max(1, plan.cpus_per_worker // sharing), gpus=gpus)


def plan_resources(
    nodes: Sequence[dict[str, float]],
    *,
    num_tasks: int,
    num_workers: NumWorkers,
    max_concurrent: int | None,
    pack: int = 1,
    worker_bytes: float = MEMORY_PER_WORKER,
) -> Plan:
    """Divide the cluster. Where it has GPUs, only the nodes that have them train.

    Args:
        nodes: resources of each living node: ``CPU``, ``GPU``, ``memory`` in bytes.
        num_tasks: tasks to train.
        num_workers: workers a task. Of a range, as many as the cluster holds now are planned for.
        max_concurrent: most tasks at once; None lets every worker have a GPU of its own, or a CPU where there are none.
        pack: most tasks that a worker trains in one batch.
        worker_bytes: that a worker takes on a node without GPUs, with its share of what Ray runs beside it.

    Raises:
        ValueError: the workers of one task cannot be placed, with what the cluster has.
    """
    num_groups = math.ceil(num_tasks / pack)
    most_groups = None if max_concurrent is None else math.ceil(max_concurrent / pack)
    option, (fewest, most) = f"--num-workers {workers_text(num_workers)}", worker_bounds(num_workers)
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    nodes = [node for node in nodes if node.get("GPU", 0) >= 1] if gpus else nodes
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    if cpus < fewest:
        where = "nodes with GPUs" if gpus else "nodes"
        raise ValueError(f"{option}: each needs a CPU, and the cluster's {where} have {cpus}")
    workers, worker_range = most, None
    if fewest < most:
        workers, worker_range = max(fewest, min(most, cpus, gpus or cpus)), (fewest, most)
    default = max(1, (gpus or min(cpus, _fitting_in_memory(nodes, worker_bytes))) // workers)
    plan = Plan(
        num_workers=workers,
        worker_range=worker_range,
        concurrent=0,
        pack=pack,
        cpus_per_worker=1,
        gpus_per_worker=0,
    )
    if pack > 1:  # one of the widest packs has a device to itself
        most_groups = min(most_groups or default, default)
    for groups in range(min(num_groups, most_groups or default, cpus // workers), 0, -1):
        needed = groups * workers
        share = 0.0 if not gpus else 1.0 if needed <= gpus else math.floor(1e4 / math.ceil(needed / gpus)) / 1e4
        at_once = min(num_tasks, groups * pack, max_concurrent or num_tasks)
        plan = replace(plan, concurrent=at_once, gpus_per_worker=share)
        if _places(nodes, plan) >= needed:
            break
    else:
        raise ValueError(f"{option}: no nodes have a CPU and a GPU's share for each of them at once")
    if worker_range is not None and plan.shares_gpu:
        smaller = f"--max-concurrent {gpus // workers}" if workers <= gpus else f"a range from at most {gpus}"
        raise ValueError(
            f"{option}: {needed} workers at once on {counted(gpus, 'GPU')} would have {plan.gpus_per_worker:g} GPU "
            f"each, and only of workers with whole GPUs the number can change; use {smaller}, or a fixed number"
        )
    # Of a range, the smallest node shall hold a worker: it may be the one that is left.
    widest = cpus if worker_range is None else min(int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1)
    while (
        plan.cpus_per_worker < widest
        and _places(nodes, wider := replace(plan, cpus_per_worker=plan.cpus_per_worker + 1)) >= needed
    ):
        plan = wider
    return plan


def widest_pack(nodes: Sequence[dict[str, float]], num_tasks: int, max_concurrent: int | None) -> int:
    """Tasks a pack where every GPU has one pack, or every node where there are no GPUs."""
    devices = sum(int(node.get("GPU", 0)) for node in nodes) or sum(node.get("CPU", 0) >= 1 for node in nodes)
    return max(1, math.ceil(min(num_tasks, max_concurrent or num_tasks) / max(1, devices)))


def _places(nodes: Sequence[dict[str, float]], plan: Plan) -> int:
    """Workers of the plan that the nodes hold together; a worker never spans two, nor two cards."""
    total = 0
    for node in nodes:
        by_cpu = int(node.get("CPU", 0)) // plan.cpus_per_worker
        by_gpu = int(node.get("GPU", 0)) * int(1 / plan.gpus_per_worker) if plan.gpus_per_worker else by_cpu
        total += min(by_cpu, by_gpu)
    return total


def _fitting_in_memory(nodes: Sequence[dict[str, float]], worker_bytes: float) -> int:
    """Workers that fit in memory; one if there is little; as many as you like on a node that does not say."""
    if any("memory" not in node for node in nodes):
        return 10**6
    return max(1, sum(int(node["memory"] // worker_bytes) for node in nodes))
