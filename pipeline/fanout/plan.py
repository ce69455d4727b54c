"""Estimates the workers, memory and time of a fan-out before anything starts, and refuses what can never run."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hst.backbone import Backbone
from hst.config import MEMORY_MODES
from pipeline.cluster.ray_cluster import WorkerError, living_nodes
from pipeline.cluster.resources import (
    MEMORY_PER_WORKER,
    Plan,
    Room,
    plan_resources,
    plan_trials,
    widest_pack,
    worker_bounds,
)
from pipeline.console.command_line import FaultyOptions
from pipeline.console.progress import counted
from pipeline.console.text_table import aligned, duration
from pipeline.fanout.calibration import (
    SECONDS_AROUND,
    Rate,
    pack_bytes,
    rates_of,
    run_seconds,
    search_seconds,
    worker_bytes,
)
from pipeline.fanout.memory import Node, fitting_pack, gigabytes, memory_faults, with_memory
from pipeline.fanout.options import AUTO_PACK, FanoutOptions
from pipeline.workflow.job import TaskJob

HELPERS_BYTES = 0.9e9
"""Memory of Ray Train's own processes for a task in training: a controller of 0.4 GB and five helpers of 0.1 GB
(measured)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated cost of one task."""

    task: str
    images: int
    """Number of images in an epoch of its final run, or of the search's trials if there is no final run."""
    epochs: int
    search_seconds: float | None
    """Upper estimate of the search, as if no trial is stopped early; None without a search."""
    selection_seconds: float | None
    """Selection runs of all seeds; None without selection runs."""
    final_seconds: float | None
    """Final runs of all seeds; None if there is only a search."""
    worker_bytes: int

    @property
    def seconds(self) -> float:
        """Time until the task is registered."""
        parts = (self.search_seconds, self.selection_seconds, self.final_seconds)
        return sum(part for part in parts if part is not None) + SECONDS_AROUND


def plan_fanout(
    options: FanoutOptions,
    jobs: Sequence[TaskJob],
    backbone: Backbone,
    shared: Any,
    *,
    done: Collection[str],
    say: Callable[[str], None],
) -> tuple[Plan, Room, list[TaskJob]]:
    """Divides the cluster among the jobs, and prints the plan and an estimate of memory and time.

    Args:
        options: Say how many workers and tasks run at once, and where storage is.
        jobs: All jobs.
        backbone: The frozen ViT.
        shared: Its weights, returned by `pipeline.training.on_ray.driver.put_backbone`.
        done: Tasks that an earlier run has finished; if all are, nothing is measured.
        say: Prints a line.

    Returns:
        The plan, the room for trials, and the jobs, each with the memory mode of its steps.

    Raises:
        FaultyOptions: The workers of a task can never be placed.
    """
    planner = _Planner(options, jobs, backbone, shared)
    first = widest_pack(planner.nodes, len(jobs), options.max_concurrent)
    plan = planner.plan(first if options.pack == AUTO_PACK else min(options.pack, len(jobs)))
    told = f"{counted(len(jobs), 'task')} on {backbone.name} ({backbone.identity[:12]})"
    if all(job.task.name in done for job in jobs):
        say(f"{told}: {plan}")
        return planner.with_room(plan, jobs)
    try:
        fitted = planner.fitted(plan)
    except WorkerError as error:
        say(f"{told}: {plan}")
        say(f"time and memory are unknown: {error}")
        return planner.with_room(plan, jobs)
    say(f"{told}: {fitted.plan}")
    for line in _estimate_lines(fitted, planner.nodes, done, search_only=options.search_only):
        say(line)
    # A trial is one run of one task.
    alone = dataclasses.replace(fitted.plan, pack=1)
    return planner.with_room(fitted.plan, fitted.jobs, _largest_bytes(fitted.jobs, fitted.rates, alone))


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """A plan whose workers fit, by measured rates."""

    plan: Plan
    jobs: list[TaskJob]
    """The jobs, each with the memory mode of its steps."""
    rates: list[Rate]
    """One for each job."""
    hardware: str
    """The hardware on which the rates were measured."""


class _Planner:
    """Divides one cluster among the jobs of one fan-out."""

    def __init__(self, options: FanoutOptions, jobs: Sequence[TaskJob], backbone: Backbone, shared: Any) -> None:
        self.nodes = living_nodes()
        self._options, self._jobs, self._backbone, self._shared = options, jobs, backbone, shared

    def plan(self, pack: int, worker_bytes: float = MEMORY_PER_WORKER) -> Plan:
        """Places workers for packs of this many tasks; raises FaultyOptions if that is impossible."""
        try:
            return plan_resources(
                self.nodes,
                num_tasks=len(self._jobs),
                num_workers=self._options.num_workers,
                max_concurrent=self._options.max_concurrent,
                pack=pack,
                worker_bytes=worker_bytes,
            )
        except ValueError as error:
            raise FaultyOptions([str(error)]) from error

    def with_room(
        self, plan: Plan, jobs: Sequence[TaskJob], worker_bytes: float = MEMORY_PER_WORKER
    ) -> tuple[Plan, Room, list[TaskJob]]:
        """The plan with the room of a search's trials; raises FaultyOptions where they have none."""
        at_once = self._options.search.at_once if self._options.search else None
        try:
            return plan, plan_trials(self.nodes, plan, at_once, worker_bytes), list(jobs)
        except ValueError as error:
            raise FaultyOptions([str(error)]) from error

    def fitted(self, plan: Plan) -> _Fitted:
        """Measures the jobs on the plan's workers, and changes the plan until its workers fit.

        Raises:
            FaultyOptions: A worker fits on no node, or on no GPU's share.
            WorkerError: Nothing could be measured.
        """
        rates, hardware = self._measured(plan)
        if self._options.pack == AUTO_PACK:
            fitting = fitting_pack(self._jobs, rates, plan, self.nodes)
            if fitting < plan.pack:
                plan = self.plan(fitting)
                rates, hardware = self._measured(plan)
        jobs = with_memory(self._jobs, rates, plan, self.nodes)
        if faults := memory_faults(jobs, rates, plan, self.nodes):
            raise FaultyOptions(faults)
        if not plan.gpus_per_worker:
            most = _largest_bytes(jobs, rates, plan) + HELPERS_BYTES / worker_bounds(self._options.num_workers)[0]
            first, plan = plan, self.plan(plan.pack, most)
            if plan.cpus_per_worker != first.cpus_per_worker:
                rates, hardware = self._measured(plan)
        return _Fitted(plan=plan, jobs=jobs, rates=rates, hardware=hardware)

    def _measured(self, plan: Plan) -> tuple[list[Rate], str]:
        storage = self._options.storage
        return rates_of(self._jobs, plan, backbone=self._backbone, shared=self._shared, storage=storage)


def _estimate_lines(
    fitted: _Fitted, nodes: Sequence[Node], done: Collection[str], *, search_only: bool
) -> Iterator[str]:
    """Lines that estimate the time and memory of the tasks that are not done."""
    plan, pairs = fitted.plan, list(zip(fitted.jobs, fitted.rates, strict=True))
    left = [(job, rate) for job, rate in pairs if job.task.name not in done]
    yield from plan_lines([estimate(job, rate, plan, search_only=search_only) for job, rate in left], plan, nodes)
    if plan.pack > 1:
        needed = gigabytes(pack_bytes(fitted.jobs, fitted.rates, plan))
        yield f"a pack of the largest {plan.pack} takes about {needed}"
    if len(left) < len(pairs):
        yield f"{counted(len(pairs) - len(left), 'task')} of {len(pairs)} done before"
    yield f"(by a few steps of a worker on {fitted.hardware}; reading and decoding images is not in it)"
    for job, _ in left:
        if job.fitting_memory != MEMORY_MODES[0]:
            yield f"{job.task.name}: memory={job.memory}: what a step keeps would not fit otherwise"


def _largest_bytes(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan) -> int:
    """Memory of the worker that needs most."""
    if plan.pack > 1:
        return pack_bytes(jobs, rates, plan)
    return max(worker_bytes(job, rate, plan) for job, rate in zip(jobs, rates, strict=True))


def estimate(job: TaskJob, rate: Rate, plan: Plan, *, search_only: bool = False) -> Estimate:
    """Estimates the cost of a job. Tasks that share a GPU are assumed to slow each other down fully."""
    share = 1 / plan.gpus_per_worker if plan.shares_gpu else 1.0

    def of_seeds(protocol: str, made: bool) -> float | None:
        return share * job.num_seeds * run_seconds(job, protocol, rate, plan.num_workers) if made else None

    return Estimate(
        task=job.task.name,
        images=job.num_samples["train" if search_only else "trainval"],
        epochs=job.recipe.epochs,
        search_seconds=None if job.search is None else share * search_seconds(job, rate, plan),
        selection_seconds=of_seeds("selection", job.select and not search_only),
        final_seconds=of_seeds("final", not search_only),
        worker_bytes=worker_bytes(job, rate, plan),
    )


def total_seconds(seconds: Sequence[float], concurrent: int) -> float:
    """Time until all tasks have ended, if they start in this order and ``concurrent`` of them run at once."""
    ends = [0.0] * concurrent
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def plan_lines(estimates: Sequence[Estimate], plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """The estimates as text: one line a task, and one for all of them."""
    searched = any(one.search_seconds is not None for one in estimates)
    header = ["task", "images", "epochs", *(["search, about"] if searched else []), "selection", "final"]
    header.append("memory, alone" if plan.pack > 1 else "memory a worker")
    rows = [
        [
            one.task,
            f"{one.images:,}",
            str(one.epochs),
            *([duration(one.search_seconds)] if searched else []),
            duration(one.selection_seconds),
            duration(one.final_seconds),
            gigabytes(one.worker_bytes),
        ]
        for one in estimates
    ]
    total = total_seconds([one.seconds for one in estimates], plan.packs)
    room = max((node["memory"] for node in nodes if "memory" in node), default=None)
    beside = "" if room is None or plan.gpus_per_worker else f", of {gigabytes(room)} that a node gives to workers"
    return [
        *aligned(header, rows, left=1),
        f"about {duration(total)} in all, {counted(plan.concurrent, 'task')} at once{beside}",
    ]
