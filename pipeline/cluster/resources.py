"""Plans how many tasks a cluster trains at once and what each worker gets. Refuses what can never be placed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.console.progress import counted

MEMORY_PER_WORKER = 2.5e9
"""Default memory in bytes of one train worker on a CPU node, with its share of Ray's helper actors."""


NumWorkers = int | tuple[int, int]
"""Train workers per task. From a range, Ray uses as many as the cluster holds, and may change that during training."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Resources that the fan-out requests from Ray."""

    num_workers: int
    """Train workers per task; with a range, as many of it as the cluster holds now."""
    worker_range: tuple[int, int] | None = None
    """Fewest and most workers per task, if Ray may change their number during training."""
    concurrent: int
    """Tasks that train at the same time."""
    pack: int = 1
    """Most tasks that a worker trains in one batch."""
    cpus_per_worker: int
    """CPUs, and torch threads, per worker."""
    gpus_per_worker: float
    """1, or a fraction if several workers share a GPU; 0 on a cluster without GPUs."""

    @property
    def asked_workers(self) -> NumWorkers:
        """The requested number or range of workers per task, whatever the cluster holds now."""
        return self.worker_range or self.num_workers

    @property
    def packs(self) -> int:
        """Groups of workers that train at the same time, each for one task or one pack of tasks."""
        return math.ceil(self.concurrent / self.pack)

    @property
    def shares_gpu(self) -> bool:
        """Whether two workers may share a GPU, where NCCL does not work."""
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
    """Parses a number such as ``2`` or a range such as ``1-4``.

    Raises:
        ValueError: The text is neither.
    """
    fewest, dash, most = text.strip().partition("-")
    if not fewest.isdecimal() or (dash and not most.isdecimal()):
        raise ValueError(f"{text!r}: expected a number of workers, as in 2, or a range, as in 1-4")
    return (int(fewest), int(most)) if dash and fewest != most else int(fewest)


def workers_text(num_workers: NumWorkers) -> str:
    """The inverse of `parse_num_workers`."""
    return str(num_workers) if isinstance(num_workers, int) else "-".join(map(str, num_workers))


def counted_workers(num_workers: NumWorkers) -> str:
    """The number in words: 1 worker, 2 workers, 1 to 4 workers."""
    if isinstance(num_workers, int):
        return counted(num_workers, "worker")
    return f"{num_workers[0]} to {counted(num_workers[1], 'worker')}"


def worker_bounds(num_workers: NumWorkers) -> tuple[int, int]:
    """Fewest and most workers."""
    return (num_workers, num_workers) if isinstance(num_workers, int) else num_workers


def num_workers_fault(num_workers: NumWorkers) -> str | None:
    """What is wrong with a number or a range on any cluster; None if it is valid."""
    fewest, most = worker_bounds(num_workers)
    if fewest < 1:
        return f"--num-workers {workers_text(num_workers)}: expected at least 1"
    if most < fewest:
        return f"--num-workers {workers_text(num_workers)}: expected the smaller number first, as in {most}-{fewest}"
    return None


@dataclass(frozen=True, kw_only=True)
class Room:
    """Resources for the trials of one task's search: a division of those that its training will have."""

    at_once: int
    """Trials that run at the same time."""
    cpus: int
    """CPUs, and torch threads, per trial."""
    gpus: float
    """GPUs per trial: 1, or a fraction if several trials share a GPU; 0 without GPUs."""


def plan_trials(
    nodes: Sequence[dict[str, float]], plan: Plan, at_once: int | None, worker_bytes: float = MEMORY_PER_WORKER
) -> Room:
    """Divides a task's share of the cluster among its trials.

    Args:
        nodes: Resources of each living node, as for `plan_resources`.
        plan: The plan for the task's training.
        at_once: Trials at the same time. None: one per worker with GPUs, else one per CPU if memory allows.
        worker_bytes: Memory of a trial on a node without GPUs.

    Raises:
        ValueError: There are more trials than CPUs, or than memory holds.
    """
    if plan.pack > 1:  # a task has only its share of the worker that its pack uses
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
    """Divides the cluster among tasks. If it has GPUs, only the nodes with GPUs train.

    Args:
        nodes: Resources of each living node: ``CPU``, ``GPU``, ``memory`` in bytes.
        num_tasks: Tasks to train.
        num_workers: Workers per task. With a range, the plan uses as many as the cluster holds now.
        max_concurrent: Most tasks at the same time. None: every worker has its own GPU, or its own CPU without GPUs.
        pack: Most tasks that a worker trains in one batch.
        worker_bytes: Memory of a worker on a node without GPUs, with its share of Ray's helper processes.

    Raises:
        ValueError: The workers of one task cannot be placed; the message says what the cluster has.
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
    if pack > 1:  # packs do not share a GPU, even if --max-concurrent would allow more of them
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
            f"each, but the number of workers can change only if each has a whole GPU; use {smaller}, or a fixed number"
        )
    # With a range, a worker must fit on the smallest node: it may be the last one left.
    widest = cpus if worker_range is None else min(int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1)
    while (
        plan.cpus_per_worker < widest
        and _places(nodes, wider := replace(plan, cpus_per_worker=plan.cpus_per_worker + 1)) >= needed
    ):
        plan = wider
    return plan


def widest_pack(nodes: Sequence[dict[str, float]], num_tasks: int, max_concurrent: int | None) -> int:
    """Tasks per pack if every GPU has one pack (without GPUs: every node)."""
    devices = sum(int(node.get("GPU", 0)) for node in nodes) or sum(node.get("CPU", 0) >= 1 for node in nodes)
    return max(1, math.ceil(min(num_tasks, max_concurrent or num_tasks) / max(1, devices)))


def _places(nodes: Sequence[dict[str, float]], plan: Plan) -> int:
    """Workers of the plan that fit on all nodes; a worker spans neither two nodes nor two GPUs."""
    total = 0
    for node in nodes:
        by_cpu = int(node.get("CPU", 0)) // plan.cpus_per_worker
        by_gpu = int(node.get("GPU", 0)) * int(1 / plan.gpus_per_worker) if plan.gpus_per_worker else by_cpu
        total += min(by_cpu, by_gpu)
    return total


def _fitting_in_memory(nodes: Sequence[dict[str, float]], worker_bytes: float) -> int:
    """Workers that fit in memory, at least one; no limit if a node does not report its memory."""
    if any("memory" not in node for node in nodes):
        return 10**6
    return max(1, sum(int(node["memory"] // worker_bytes) for node in nodes))
