"""What a fan-out will take, told before anything starts: tasks, workers, memory, time. Refuses what can never run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hst.backbone import Backbone
from pipeline.calibration import SECONDS_AROUND, Rate, images_a_step, rates_of, run_seconds, worker_bytes
from pipeline.command_line import FaultyOptions
from pipeline.fanout_options import FanoutOptions
from pipeline.progress import counted
from pipeline.ray_cluster import WorkerError, living_nodes
from pipeline.reports.table import aligned, duration
from pipeline.resources import Plan, plan_resources, worker_bounds
from pipeline.task_job import TaskJob

HELPERS_BYTES = 0.9e9
"""Of Ray Train's own processes for a task in training: a controller of 0.4 GB, five helpers of 0.1 GB (measured)."""

Node = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """About what one task takes."""

    task: str
    images: int
    """Of an epoch of its final run."""
    epochs: int
    selection_seconds: float | None
    """None where there is no selection run."""
    final_seconds: float
    worker_bytes: int

    @property
    def seconds(self) -> float:
        """Until the task is registered."""
        return (self.selection_seconds or 0.0) + self.final_seconds + SECONDS_AROUND


def plan_fanout(
    options: FanoutOptions,
    jobs: Sequence[TaskJob],
    backbone: Backbone,
    shared: Any,
    *,
    done: Collection[str],
    say: Callable[[str], None],
) -> Plan:
    """Divides the cluster among the jobs, and says how, and about what they will take.

    Args:
        options: workers, how many tasks at once, and where storage is.
        jobs: all of them.
        backbone: the frozen ViT.
        shared: its weights, of `pipeline.training.driver.put_backbone`.
        done: tasks that were done by an earlier run; where all are, nothing is measured.
        say: prints a line.

    Raises:
        FaultyOptions: the workers of a task can never be placed.
    """
    nodes = living_nodes()

    def planned(**memory: float) -> Plan:
        try:
            return plan_resources(
                nodes,
                num_tasks=len(jobs),
                num_workers=options.num_workers,
                max_concurrent=options.max_concurrent,
                **memory,
            )
        except ValueError as error:
            raise FaultyOptions([str(error)]) from error

    plan, told = planned(), f"{counted(len(jobs), 'task')} on {backbone.name} ({backbone.identity[:12]})"
    to_do = [job for job in jobs if job.task.name not in done]
    if not to_do:
        say(f"{told}: {plan}")
        return plan

    def measured(plan: Plan) -> tuple[list[Rate], str]:
        return rates_of(jobs, plan, backbone=backbone, shared=shared, storage=options.storage)

    try:
        rates, hardware = measured(plan)
        if faults := memory_faults(jobs, rates, plan, nodes):
            raise FaultyOptions(faults)
        if not plan.gpus_per_worker:
            most = max(worker_bytes(job, rate, plan) for job, rate in zip(jobs, rates, strict=True))
            first, plan = plan, planned(worker_bytes=most + HELPERS_BYTES / worker_bounds(options.num_workers)[0])
            if plan.cpus_per_worker != first.cpus_per_worker:
                rates, hardware = measured(plan)
    except WorkerError as error:
        say(f"{told}: {plan}")
        say(f"about time and memory nothing is known: {error}")
        return plan
    say(f"{told}: {plan}")
    estimates = [estimate(job, rate, plan) for job, rate in zip(jobs, rates, strict=True) if job in to_do]
    for line in plan_lines(estimates, plan, nodes):
        say(line)
    if len(to_do) < len(jobs):
        say(f"{counted(len(jobs) - len(to_do), 'task')} of {len(jobs)} done before")
    say(f"(by a few steps of a worker on {hardware}; reading and decoding images is not in it)")
    return plan


def estimate(job: TaskJob, rate: Rate, plan: Plan) -> Estimate:
    """About what a job takes; tasks that share a GPU are taken to slow each other down in full."""
    share = 1 / plan.gpus_per_worker if plan.shares_gpu else 1.0
    return Estimate(
        task=job.task.name,
        images=job.num_samples["trainval"],
        epochs=job.recipe.epochs,
        selection_seconds=share * run_seconds(job, "selection", rate, plan.num_workers) if job.select else None,
        final_seconds=share * run_seconds(job, "final", rate, plan.num_workers),
        worker_bytes=worker_bytes(job, rate, plan),
    )


def total_seconds(seconds: Sequence[float], concurrent: int) -> float:
    """Until all tasks have ended, begun in this order, so many at once."""
    ends = [0.0] * concurrent
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def memory_faults(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """Why workers of some jobs fit on no node, or no GPU's share, with what to change; empty where they do."""
    faults = []
    for job, rate in zip(jobs, rates, strict=True):
        needed = worker_bytes(job, rate, plan)
        if plan.gpus_per_worker:
            room, where, more = (
                rate.device_bytes * plan.gpus_per_worker,
                "its part of a GPU",
                ", a smaller --max-concurrent",
            )
        else:
            # Ray keeps a part of a node's memory for its object store; that is not lost to what runs there.
            sizes = [node["memory"] + node.get("object_store_memory", 0) for node in nodes if "memory" in node]
            room, where, more = max(sizes, default=float("inf")), "the largest node", ""
        if needed > room:
            images = images_a_step(job, worker_bounds(plan.asked_workers)[0])
            faults.append(
                f"{job.task.name}: a worker needs about {gigabytes(needed)} for {images} images of "
                f"{job.recipe.image_size} pixels, and {where} has {gigabytes(room)}; use a smaller batch_size or "
                f"image_size, more accumulation_steps, more --num-workers{more}"
            )
    return faults


def plan_lines(estimates: Sequence[Estimate], plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """For people: a line a task, and one for all of them."""
    header = ["task", "images", "epochs", "selection", "final", "memory a worker"]
    rows = [
        [
            one.task,
            f"{one.images:,}",
            str(one.epochs),
            "-" if one.selection_seconds is None else duration(one.selection_seconds),
            duration(one.final_seconds),
            gigabytes(one.worker_bytes),
        ]
        for one in estimates
    ]
    total = total_seconds([one.seconds for one in estimates], plan.concurrent)
    room = max((node["memory"] for node in nodes if "memory" in node), default=None)
    beside = "" if room is None or plan.gpus_per_worker else f", of {gigabytes(room)} that a node gives to workers"
    return [
        *aligned(header, rows, left=1),
        f"about {duration(total)} in all, {counted(plan.concurrent, 'task')} at once{beside}",
    ]


def gigabytes(count: float) -> str:
    """For people."""
    return f"{count / 1e9:.1f} GB"
