"""Whether the workers of a fan-out's tasks fit in memory, by measured rates, and what makes them fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hst.config import MEMORY_MODES
from pipeline.cluster.resources import Plan, worker_bounds
from pipeline.fanout.calibration import Rate, images_a_step, pack_bytes, worker_bytes
from pipeline.workflow.job import TaskJob

Node = dict[str, float]


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
            f"--pack {plan.pack}: this many tasks need about {gigabytes(needed)} together, and a worker has "
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


def gigabytes(count: float) -> str:
    """A number of bytes as text in GB."""
    return f"{count / 1e9:.1f} GB"
