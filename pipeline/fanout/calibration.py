"""How long a task will take and what memory its workers need, from a few steps that one worker makes beforehand.

What was measured is kept in storage, under a fingerprint of all that it depends on: the same command measures once.
Every number that comes of it is "about": data is not read, workers do not wait for each other, nothing else runs.
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
"""For all models together, on a worker that has begun; a slow one takes what two images a model take."""
SECONDS_UNTIL_BACK = 120.0
"""Then there is no estimate: the cluster is busy, or the worker far too slow."""
MOST_MODELS = 3
"""That are measured; those of fewer pixels are scaled from them."""
PACK_MARGIN = 1.25
"""Of memory, in a pack: its runs take and give back theirs at different times (1.18 and 1.24 times were seen)."""
SECONDS_AROUND = 20.0
"""Of a task, beside its steps: workers start and end, a checkpoint is registered (measured on two busy cores)."""

_FOLDER = "calibrations"
_MODULES = ("pipeline.training.calibrate",)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one worker needs for a task's model."""

    train_seconds: float
    """An image of a train step."""
    eval_seconds: float
    """An image of an evaluation."""
    base_bytes: int
    """Of its memory (on a GPU, of the GPU's) with the model and without an image."""
    image_bytes: int
    """More for each image of a train step."""
    device_bytes: int = 0
    """All memory of its GPU; 0 on a CPU."""
    kept: Mapping[str, float] = field(default_factory=dict)
    """By mode of `hst.config.MEMORY_MODES`, the part of ``image_bytes`` that a step needs in it."""
    stacked: float = 1.0
    """Times ``image_bytes`` in a pack on a GPU, in the first mode: side networks are stacked there."""

    def scaled(self, pixels: float) -> Rate:
        """Of images with so many times the pixels."""
        return dataclasses.replace(
            self,
            train_seconds=self.train_seconds * pixels,
            eval_seconds=self.eval_seconds * pixels,
            image_bytes=round(self.image_bytes * pixels),
        )


def estimate_seconds(
    *, images: int, epochs: float, eval_images: int, evaluations: int, rate: Rate, num_workers: int = 1
) -> float:
    """About how long a training takes, without what is around it (SECONDS_AROUND).

    Args:
        images: of an epoch.
        epochs: that are trained.
        eval_images: of the split that is evaluated.
        evaluations: of it.
        rate: of one worker.
        num_workers: that share the images.
    """
    seconds = images * epochs * rate.train_seconds + eval_images * evaluations * rate.eval_seconds
    return seconds / num_workers


def num_evaluations(recipe: Recipe) -> int:
    """Of val, in a selection run."""
    return sum(recipe.is_validated(epoch) for epoch in range(1, recipe.epochs + 1))


def search_seconds(job: TaskJob, rate: Rate, plan: Plan) -> float:
    """About how long a job's search takes where no trial is stopped early, with the default's side network in all."""
    assert job.search is not None
    trial = dataclasses.replace(job, recipe=job.search.recipe(job.recipe))
    # The trials share what the training's workers have.
    seconds = job.search.options.trials * run_seconds(trial, "selection", rate, plan.num_workers)
    return min(seconds, job.search.options.seconds or seconds)


def run_seconds(job: TaskJob, kind: str, rate: Rate, num_workers: int) -> float:
    """About how long the ``selection`` or ``final`` run of a job takes."""
    trained, evaluated = RUN_SPLITS[kind]
    count, epochs = job.num_samples[trained], job.recipe.epochs
    batch_size = min(job.recipe.batch_size, count)
    return estimate_seconds(
        images=count // batch_size * batch_size,  # the last, partial batch is dropped
        epochs=epochs,
        eval_images=job.num_samples[evaluated],
        evaluations=num_evaluations(job.recipe) if kind == "selection" else 1,
        rate=rate,
        num_workers=num_workers,
    )


def images_a_step(job: TaskJob, num_workers: int) -> int:
    """That one worker has in memory at once, of the largest split that is trained on."""
    batch_size = min(job.recipe.batch_size, max(job.num_samples["train"], job.num_samples["trainval"]))
    return math.ceil(batch_size / job.recipe.accumulation_steps / num_workers)


def worker_bytes(job: TaskJob, rate: Rate, plan: Plan) -> int:
    """About how much memory a worker needs for a task alone when it is one of the fewest: on a GPU, of the GPU's."""
    return rate.base_bytes + task_bytes(job, rate, plan)


def task_bytes(job: TaskJob, rate: Rate, plan: Plan) -> int:
    """The part of it that each of several tasks in a pack needs; there both runs of a task are made at one time."""
    fewest = worker_bounds(plan.asked_workers)[0]
    images = images_a_step(job, fewest) * (2 if plan.pack > 1 and job.select else 1)
    part = rate.stacked if plan.pack > 1 and job.memory == MEMORY_MODES[0] else rate.kept.get(job.memory, 1.0)
    needed = round(rate.image_bytes * part * images)
    return needed if plan.gpus_per_worker else needed + decoded_bytes(job)


def pack_bytes(jobs: Sequence[TaskJob], rates: Sequence[Rate], plan: Plan) -> int:
    """Of a worker that has those of the jobs, as many as a pack has, that need the most."""
    most = sorted((task_bytes(job, rate, plan) for job, rate in zip(jobs, rates, strict=True)), reverse=True)
    margin = PACK_MARGIN if plan.pack > 1 else 1
    return max(rate.base_bytes for rate in rates) + round(margin * sum(most[: plan.pack]))


def decoded_bytes(job: TaskJob) -> int:
    """Of the images that stay decoded in a node's memory: train's and val's, unless they are too many or augmented.

    trainval is those two; test, which is read once, is not kept.
    """
    one, recipe = 3 * job.recipe.image_size**2, job.recipe
    trained = [] if recipe.augments_images else ["train" if job.select else "trainval"]
    splits = [*trained, *(["val"] if job.select else [])]
    kept = [job.num_samples[split] * one for split in splits]
    return sum(size for size in kept if size <= MEMORY_LIMIT_BYTES)


def rates_of(
    jobs: Sequence[TaskJob], plan: Plan, *, backbone: Backbone, shared: Any, storage: str
) -> tuple[list[Rate], str]:
    """The rate of each job's model, measured on a worker of the plan now or by an earlier run; and on what machine.

    Args:
        jobs: with the number of their images.
        plan: says what a worker has.
        backbone: the frozen ViT.
        shared: its weights, of `pipeline.training.on_ray.driver.put_backbone`.
        storage: where rates are kept.

    Raises:
        WorkerError: there was no worker for it, or it failed.
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
            "sources": modules_sha256(_MODULES),
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
    """A worker's node, and what machine that is: the one that is named is to be measured, where they differ."""
    return this_node(), machine("torch")


def _models(jobs: Sequence[TaskJob], plan: Plan) -> tuple[list[dict[str, Any]], list[tuple[int, float]]]:
    """The distinct models of the jobs that are to be measured, those of most pixels; and by job, which of them is
    nearest to its own, and how many times that one's pixels it has."""
    distinct: dict[str, dict[str, Any]] = {}
    keys = []
    for job in jobs:
        fields = ("image_size", "precision", "head_input")
        recipe = {name: getattr(job.recipe, name) for name in fields}
        own: dict[str, Any] = {"kind": job.task.kind, "method": job.method, "recipe": recipe}
        key = json.dumps(own, sort_keys=True)
        model = distinct.setdefault(key, {**own, "batch_size": 0})
        model["batch_size"] = max(model["batch_size"], images_a_step(job, plan.num_workers))
        keys.append(key)
    largest_first = sorted(distinct, key=lambda key: (-distinct[key]["recipe"]["image_size"], key))
    measured = [distinct[key] for key in largest_first[:MOST_MODELS]]

    def likeness(model: dict[str, Any], other: dict[str, Any]) -> tuple[bool, bool, int]:
        """Larger where they are more alike."""
        sizes = [one["recipe"]["image_size"] for one in (model, other)]
        same_precision = model["recipe"]["precision"] == other["recipe"]["precision"]
        return model["method"] == other["method"], same_precision, -abs(sizes[0] - sizes[1])

    nearest = []
    for key in keys:
        asked = distinct[key]
        i = max(range(len(measured)), key=lambda i: (measured[i] == asked, likeness(measured[i], asked)))
        nearest.append((i, (asked["recipe"]["image_size"] / measured[i]["recipe"]["image_size"]) ** 2))
    return measured, nearest
