"""Estimates how long a task takes and how much memory its workers need, from a few steps that one worker makes first.

Measurements are kept in storage, under a fingerprint of all that they depend on, so the same command measures once.
All numbers are approximate: while measuring, no data is read, workers do not wait for each other and nothing else runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hst.backbone import Backbone
from hst.config import MEMORY_MODES
from pipeline.cluster.machine import machine
from pipeline.cluster.ray_cluster import call_on_worker, this_node
from pipeline.cluster.resources import Plan, worker_bounds
from pipeline.data.batches.streaming import MEMORY_LIMIT_BYTES
from pipeline.storage.files import exists, join, read_bytes, write_bytes
from pipeline.tasks.recipe import Recipe
from pipeline.tracking.import_closure import modules_sha256
from pipeline.training.calibrate import measure
from pipeline.workflow.job import RUN_SPLITS, TaskJob

SECONDS = 10.0
"""Time for measuring all models, once the worker has started. A slow worker takes longer: a model needs two images."""
SECONDS_UNTIL_BACK = 120.0
"""Time after which the job does without an estimate: the cluster is busy, or the worker is far too slow."""
MOST_MODELS = 3
"""Largest number of models to measure: those with the largest images. Other models' rates are scaled from theirs."""
PACK_MARGIN = 1.25
"""Factor on the memory of a pack: its runs allocate and free memory at different times (factors of 1.18 and 1.24 were
seen)."""
SECONDS_AROUND = 20.0
"""Time of a task besides its steps: workers start and end, a checkpoint is registered (measured on two busy cores)."""

_FOLDER = "calibrations"
_MODULES = ("pipeline.training.calibrate",)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one worker needs for a task's model."""

    train_seconds: float
    """Seconds an image in a train step."""
    eval_seconds: float
    """Seconds an image in an evaluation."""
    base_bytes: int
    """Memory (on a GPU, the GPU's) with the model and without images."""
    image_bytes: int
    """Additional memory for each image of a train step."""
    device_bytes: int = 0
    """Total memory of its GPU; 0 on a CPU."""
    kept: Mapping[str, float] = field(default_factory=dict)
    """The fraction of ``image_bytes`` that a step needs in each mode of `hst.config.MEMORY_MODES`."""
    stacked: float = 1.0
    """Factor on ``image_bytes`` in a pack on a GPU, in the first mode, because side networks are stacked there."""

    def scaled(self, pixels: float) -> Rate:
        """The rate for images with ``pixels`` times as many pixels."""
        return dataclasses.replace(
            self,
            train_seconds=self.train_seconds * pixels,
            eval_seconds=self.eval_seconds * pixels,
            image_bytes=round(self.image_bytes * pixels),
        )


def estimate_seconds(
    *, images: int, epochs: float, eval_images: int, evaluations: int, rate: Rate, num_workers: int = 1
) -> float:
    """Estimates how long a training takes, without SECONDS_AROUND.

    Args:
        images: Number of images in an epoch.
        epochs: Number of epochs.
        eval_images: Number of images in the evaluated split.
        evaluations: Number of evaluations.
        rate: Rate of one worker.
        num_workers: Number of workers that share the images.
    """
    seconds = images * epochs * rate.train_seconds + eval_images * evaluations * rate.eval_seconds
    return seconds / num_workers


def num_evaluations(recipe: Recipe) -> int:
    """Number of evaluations of val in a selection run."""
    return sum(recipe.is_validated(epoch) for epoch in range(1, recipe.epochs + 1))


def search_seconds(job: TaskJob, rate: Rate, plan: Plan) -> float:
    """Estimates how long a job's search takes if no trial is stopped early and all use the default side network."""
    assert job.search is not None
    trial = dataclasses.replace(job, recipe=job.search.recipe(job.recipe))
    # The trials share the resources of the training's workers.
    seconds = job.search.options.trials * run_seconds(trial, "selection", rate, plan.num_workers)
    return min(seconds, job.search.options.seconds or seconds)


def run_seconds(job: TaskJob, protocol: str, rate: Rate, num_workers: int) -> float:
    """About how long the ``selection`` or ``final`` run of a job takes."""
    trained, evaluated = RUN_SPLITS[protocol]
    count, epochs = job.num_samples[trained], job.recipe.epochs
    batch_size = min(job.recipe.batch_size, count)
    return estimate_seconds(
        images=count // batch_size * batch_size,  # the last, partial batch is dropped
        epochs=epochs,
        eval_images=job.num_samples[evaluated],
        evaluations=num_evaluations(job.recipe) if protocol == "selection" else 1,
        rate=rate,
        num_workers=num_workers,
    )


def images_a_step(job: TaskJob, num_workers: int) -> int:
    """Number of images that one worker has in memory at once, for the largest split that is trained on."""
    batch_size = min(job.recipe.batch_size, max(job.num_samples["train"], job.num_samples["trainval"]))
    return math.ceil(batch_size / job.recipe.accumulation_steps / num_workers)


def worker_bytes(job: TaskJob, rate: Rate, plan: Plan) -> int:
    """Estimates the memory (on a GPU, the GPU's) of a worker that trains one task, with the fewest workers possible."""
    return rate.base_bytes + task_bytes(job, rate, plan)


def task_bytes(job: TaskJob, rate: Rate, plan: Plan) -> int:
    """The part of a worker's memory that one task needs. In a pack, both runs of a task train at the same time."""
    fewest = worker_bounds(plan.asked_workers)[0]
    images = images_a_step(job, fewest) * (2 if plan.pack > 1 and job.select else 1)
    part = rate.stacked if plan.pack > 1 and job.memory == MEMORY_MODES[0] else rate.kept.get(job.memory, 1.0)
    needed = round(rate.image_bytes * part * images)
    return needed if plan.gpus_per_worker else needed + decoded_bytes(job)


def pack_bytes(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan) -> int:
    """Estimates the memory of a worker whose pack holds the jobs that need most."""
    most = sorted((task_bytes(job, rate, plan) for job, rate in zip(jobs, rates, strict=True)), reverse=True)
    margin = PACK_MARGIN if plan.pack > 1 else 1
    return max(rate.base_bytes for rate in rates) + round(margin * sum(most[: plan.pack]))


def decoded_bytes(job: TaskJob) -> int:
    """Bytes of the images of train and val that stay decoded in a node's memory.

    A split that is too large is not kept, and training images are not kept if they are augmented. trainval consists of
    train and val. test is read once and not kept.
    """
    one, recipe = 3 * job.recipe.image_size**2, job.recipe
    trained = [] if recipe.augments_images else ["train" if job.select else "trainval"]
    splits = [*trained, *(["val"] if job.select else [])]
    kept = [job.num_samples[split] * one for split in splits]
    return sum(size for size in kept if size <= MEMORY_LIMIT_BYTES)


def rates_of(
    jobs: Sequence[TaskJob], plan: Plan, *, backbone: Backbone, shared: Any, storage: str
) -> tuple[list[Rate], str]:
    """The rate of each job's model, measured on a worker of the plan now or in an earlier run, and the hardware's name.

    Args:
        jobs: The jobs, with the number of their images.
        plan: Says which resources a worker has.
        backbone: The frozen ViT.
        shared: Its weights, returned by `pipeline.training.on_ray.driver.put_backbone`.
        storage: URI under which rates are kept.

    Raises:
        WorkerError: There was no worker to measure on, or it failed.
    """
    room: dict[str, Any] = {"cpus": plan.cpus_per_worker, "gpus": plan.gpus_per_worker, "patience": SECONDS_UNTIL_BACK}
    models, nearest = _models(jobs, plan)
    node, hardware = call_on_worker(_where, **room)
    records = [
        {
            "model": model,
            "backbone": backbone.identity,
            "threads": plan.cpus_per_worker,
            "gpu": plan.gpus_per_worker > 0,
            "machine": hardware,
            "sources": modules_sha256((*_MODULES, *model["parts"])),
        }
        for model in models
    ]
    keys = [hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest() for record in records]
    places = [join(storage, _FOLDER, f"{key[:16]}.json") for key in keys]
    absent = [i for i, place in enumerate(places) if not exists(place)]
    if absent:
        frozen = {"name": backbone.name, "identity": backbone.identity}
        limits: dict[str, Any] = {"threads": plan.cpus_per_worker, "seconds": SECONDS}
        found = call_on_worker(measure, shared, frozen, [models[i] for i in absent], **room, node=node, **limits)
        for i, measured in zip(absent, found, strict=True):
            write_bytes(places[i], json.dumps({**records[i], "measured": measured}, indent=1).encode())
    rates = [Rate(**json.loads(read_bytes(place))["measured"]) for place in places]
    return [rates[i].scaled(pixels) for i, pixels in nearest], hardware["hardware"]


def _where() -> tuple[str, dict[str, Any]]:
    """A worker's node and a description of its machine. Nodes may differ, so models are then measured on this one."""
    return this_node(), machine("torch")


def _models(jobs: Sequence[TaskJob], plan: Plan) -> tuple[list[dict[str, Any]], list[tuple[int, float]]]:
    """Chooses the models to measure.

    Returns:
        The jobs' distinct models with the most pixels, and for each job the index of the measured model nearest to its
        own and its number of pixels as a multiple of that model's.
    """
    distinct: dict[str, dict[str, Any]] = {}
    keys = []
    for job in jobs:
        fields = ("image_size", "precision", "head_input")
        recipe = {name: getattr(job.recipe, name) for name in fields}
        own: dict[str, Any] = {"kind": job.task.kind, "method": job.method, "recipe": recipe, "parts": job.parts}
        key = json.dumps(own, sort_keys=True)
        model = distinct.setdefault(key, {**own, "batch_size": 0})
        model["batch_size"] = max(model["batch_size"], images_a_step(job, plan.num_workers))
        keys.append(key)
    largest_first = sorted(distinct, key=lambda key: (-distinct[key]["recipe"]["image_size"], key))
    measured = [distinct[key] for key in largest_first[:MOST_MODELS]]

    def likeness(model: dict[str, Any], other: dict[str, Any]) -> tuple[bool, bool, int]:
        """A key that is larger the more alike the models are."""
        sizes = [one["recipe"]["image_size"] for one in (model, other)]
        same_precision = model["recipe"]["precision"] == other["recipe"]["precision"]
        same_model = (model["kind"], model["method"]) == (other["kind"], other["method"])
        return same_model, same_precision, -abs(sizes[0] - sizes[1])

    nearest = []
    for key in keys:
        asked = distinct[key]
        i = max(range(len(measured)), key=lambda i: (measured[i] == asked, likeness(measured[i], asked)))
        nearest.append((i, (asked["recipe"]["image_size"] / measured[i]["recipe"]["image_size"]) ** 2))
    return measured, nearest
