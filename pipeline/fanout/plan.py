"""Estimates the workers, memory and time of a fan-out before anything starts, and refuses what can never run."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hst.backbone import Backbone
from hst.config import MEMORY_MODES
from pipeline.cluster.ray_cluster import WorkerError, living_nodes
from pipeline.cluster.resources import Plan, Room, plan_resources, plan_trials, widest_pack, worker_bounds
from pipeline.console.command_line import FaultyOptions
from pipeline.console.progress import counted
from pipeline.console.text_table import aligned, duration
from pipeline.fanout.calibration import (
    SECONDS_AROUND,
    Rate,
    images_a_step,
    pack_bytes,
    rates_of,
    run_seconds,
    search_seconds,
    worker_bytes,
)
from pipeline.fanout.options import AUTO_PACK, FanoutOptions
from pipeline.workflow.job import TaskJob

HELPERS_BYTES = 0.9e9
"""Memory of Ray Train's own processes for a task in training: a controller of 0.4 GB and five helpers of 0.1 GB
(measured)."""

Node = dict[str, float]


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
    nodes = living_nodes()

    def planned(pack: int, **memory: float) -> Plan:
        try:
            return plan_resources(
                nodes,
                num_tasks=len(jobs),
                num_workers=options.num_workers,
                max_concurrent=options.max_concurrent,
                pack=pack,
                **memory,
            )
        except ValueError as error:
            raise FaultyOptions([str(error)]) from error

    def with_room(plan: Plan, jobs: Sequence[TaskJob], **memory: float) -> tuple[Plan, Room, list[TaskJob]]:
        try:
            room = plan_trials(nodes, plan, options.search.at_once if options.search else None, **memory)
            return plan, room, list(jobs)
        except ValueError as error:
            raise FaultyOptions([str(error)]) from error

    widest = widest_pack(nodes, len(jobs), options.max_concurrent)
    plan = planned(widest if options.pack == AUTO_PACK else min(options.pack, len(jobs)))
    told = f"{counted(len(jobs), 'task')} on {backbone.name} ({backbone.identity[:12]})"
    to_do = [job for job in jobs if job.task.name not in done]
    if not to_do:
        say(f"{told}: {plan}")
        return with_room(plan, jobs)

    def measured(plan: Plan) -> tuple[list[Rate], str]:
        return rates_of(jobs, plan, backbone=backbone, shared=shared, storage=options.storage)

    try:
        rates, hardware = measured(plan)
        if options.pack == AUTO_PACK and (fitting := fitting_pack(jobs, rates, plan, nodes)) < plan.pack:
            plan = planned(fitting)
            rates, hardware = measured(plan)
        jobs = with_memory(jobs, rates, plan, nodes)
        if faults := memory_faults(jobs, rates, plan, nodes):
            raise FaultyOptions(faults)
        if not plan.gpus_per_worker:
            most = _largest_bytes(jobs, rates, plan) + HELPERS_BYTES / worker_bounds(options.num_workers)[0]
            first, plan = plan, planned(plan.pack, worker_bytes=most)
            if plan.cpus_per_worker != first.cpus_per_worker:
                rates, hardware = measured(plan)
    except WorkerError as error:
        say(f"{told}: {plan}")
        say(f"time and memory are unknown: {error}")
        return with_room(plan, jobs)
    say(f"{told}: {plan}")
    estimates = [
        estimate(job, rate, plan, search_only=options.search_only)
        for job, rate in zip(jobs, rates, strict=True)
        if job.task.name not in done
    ]
    for line in plan_lines(estimates, plan, nodes):
        say(line)
    if plan.pack > 1:
        say(f"a pack of the largest {plan.pack} takes about {gigabytes(pack_bytes(jobs, rates, plan))}")
    if len(to_do) < len(jobs):
        say(f"{counted(len(jobs) - len(to_do), 'task')} of {len(jobs)} done before")
    say(f"(by a few steps of a worker on {hardware}; reading and decoding images is not in it)")
    for one in [job for job in jobs if job.task.name not in done and job.fitting_memory != MEMORY_MODES[0]]:
        say(f"{one.task.name}: memory={one.memory}: what a step keeps would not fit otherwise")
    # A trial is a single run of one task.
    return with_room(plan, jobs, worker_bytes=_largest_bytes(jobs, rates, dataclasses.replace(plan, pack=1)))


def _largest_bytes(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan) -> int:
    """Memory of the worker that needs most."""
    if plan.pack > 1:
        return pack_bytes(jobs, rates, plan)
    return max(worker_bytes(job, rate, plan) for job, rate in zip(jobs, rates, strict=True))


def estimate(job: TaskJob, rate: Rate, plan: Plan, *, search_only: bool = False) -> Estimate:
    """Estimates the cost of a job. Tasks that share a GPU are assumed to slow each other down fully."""
    share = 1 / plan.gpus_per_worker if plan.shares_gpu else 1.0

    def of_seeds(kind: str, made: bool) -> float | None:
        return share * job.num_seeds * run_seconds(job, kind, rate, plan.num_workers) if made else None

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


def fitting_pack(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan, nodes: Sequence[Node]) -> int:
    """The largest pack, up to the plan's, in which any tasks fit together with the fastest memory mode."""
    jobs = [dataclasses.replace(job, fitting_memory=MEMORY_MODES[0]) for job in jobs]
    room = min(_good_room_bytes(rate, plan, nodes) for rate in rates)
    sizes = range(plan.pack, 1, -1)
    return next((n for n in sizes if pack_bytes(jobs, rates, dataclasses.replace(plan, pack=n)) <= room), 1)


def with_memory(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan, nodes: Sequence[Node]) -> list[TaskJob]:
    """The jobs, each with the first mode of `hst.config.MEMORY_MODES` that fits, or the last if none does.

    With packs, all jobs get the first mode in which any of them fit together.
    """
    together = list(zip(jobs, rates, strict=True))
    found: list[TaskJob] = []
    for group in [together] if plan.pack > 1 else [[one] for one in together]:
        rates_of_group = [rate for _, rate in group]
        room = min(_good_room_bytes(rate, plan, nodes) for rate in rates_of_group)
        for mode in MEMORY_MODES:
            in_mode = [dataclasses.replace(job, fitting_memory=mode) for job, _ in group]
            if pack_bytes(in_mode, rates_of_group, plan) <= room:
                break
        found += in_mode
    return found


def _room_bytes(rate: Rate, plan: Plan, nodes: Sequence[Node]) -> float:
    """Memory that a worker may take: its share of a GPU's, else all of the largest node's."""
    if plan.gpus_per_worker:
        return rate.device_bytes * plan.gpus_per_worker
    # Ray reserves part of a node's memory for its object store, but processes can still use it.
    return max((n["memory"] + n.get("object_store_memory", 0) for n in nodes if "memory" in n), default=float("inf"))


def _good_room_bytes(rate: Rate, plan: Plan, nodes: Sequence[Node]) -> float:
    """Memory that a worker should take at most.

    On a GPU that is half of the room: recorded steps (`hst.gpu.recorded`) keep memory while steps of another run or
    kind are computed. With less room training works, but often drops recordings.
    """
    return _room_bytes(rate, plan, nodes) / (2 if plan.gpus_per_worker else 1)


def memory_faults(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """Why workers of some jobs fit on no node or share of a GPU, and what to change; empty if all fit."""
    room = min(_room_bytes(rate, plan, nodes) for rate in rates)
    if plan.pack > 1 and (needed := pack_bytes(jobs, rates, plan)) > room:
        return [
            f"--pack {plan.pack}: so many tasks need about {gigabytes(needed)} together, and a worker has "
            f"{gigabytes(room)}; use a smaller --pack, or --pack without a number, which chooses"
        ]
    faults = []
    for job, rate in zip(jobs, rates, strict=True):
        needed, room = worker_bytes(job, rate, plan), _room_bytes(rate, plan, nodes)
        where, more = "the largest node", ""
        if plan.gpus_per_worker:
            where, more = "its part of a GPU", ", a smaller --max-concurrent"
        if needed > room:
            images = images_a_step(job, worker_bounds(plan.asked_workers)[0])
            faults.append(
                f"{job.task.name}: a worker needs about {gigabytes(needed)} for {images} images of "
                f"{job.recipe.image_size} pixels, and {where} has {gigabytes(room)}; use a smaller batch_size or "
                f"image_size, more accumulation_steps, more --num-workers{more}"
            )
    return faults


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


def gigabytes(count: float) -> str:
    """A number of bytes as text in GB."""
    return f"{count / 1e9:.1f} GB"
