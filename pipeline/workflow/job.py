"""One task of a fan-out as it will be trained, and the site that it shares with the others."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hst.config import HSNConfig
from hst.lookup import look_up
from hst.model import hst_spec
from pipeline.cluster.resources import Plan, Room
from pipeline.data.shards.manifest import Manifest
from pipeline.kinds import KINDS
from pipeline.kinds.kind import TaskKind
from pipeline.search.plan import SearchPlan
from pipeline.storage.files import join
from pipeline.tasks.catalogue import Task
from pipeline.tasks.recipe import Recipe
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpoints import RunResult
from pipeline.training.precision import resolve_precision
from pipeline.training.unit import RunSpec
from pipeline.workflow.state import FanoutState
from pipeline.workflow.steps import Steps, fingerprint

PROTOCOLS = {
    True: "train, last epoch on val; then trainval, last epoch on test once",
    False: "no selection run; trainval, last epoch on test once",
}


@dataclass(frozen=True, kw_only=True)
class TaskJob:
    """One task of a fan-out, as it will be trained."""

    task: Task
    recipe: Recipe
    hsn: HSNConfig
    """Resolved for the backbone."""
    seed: int
    data: str
    """URI of the raw data or shards."""
    num_samples: dict[str, int] = field(default_factory=dict)
    """Images of train, val, trainval and test, as the source counts them."""
    select: bool = True
    """Make the selection run; without it the version is never promoted by itself."""
    search: SearchPlan | None = None
    """How the recipe and the side network are searched for, before the task is trained."""
    num_seeds: int = 1
    """Trainings: of this seed, whose checkpoint is registered, and of those that follow it."""
    fitting_memory: str = "speed"
    """The mode of `hst.config.MEMORY_MODES` that the plan has found to fit, for a recipe that leaves it open."""

    @property
    def method(self) -> dict[str, Any]:
        """How the task is tuned, as `hst.model.build_task_model` takes it."""
        name = self.recipe.method
        return hst_spec(self.hsn) if name == "hst" else {"name": name}

    def head(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The head of the task with these classes, as `hst.model.build_task_model` takes it."""
        kind: TaskKind = look_up(KINDS, self.task.kind, "kind of task")()
        return kind.head_spec(self.recipe, class_names)

    @property
    def memory(self) -> str:
        """One of `hst.config.MEMORY_MODES`."""
        return self.fitting_memory if self.recipe.memory == "auto" else self.recipe.memory


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a fan-out's tasks are trained, stored and recorded; the same for all of them."""

    storage: str
    tracking_uri: str
    registry_prefix: str
    cache_shards: bool
    """Copy shards on s3:// into the nodes' caches, where they are read in every epoch."""
    backbone_name: str
    backbone_identity: str
    backbone_depth: int
    """Blocks of the ViT."""
    random_weights: bool
    """A backbone of random numbers, whose results are compared with nothing."""
    backbone: Any
    """Of `pipeline.training.on_ray.driver.put_backbone`."""
    plan: Plan
    tracker: Tracker
    state: FanoutState
    """Of this fan-out, in storage."""
    parent_key: str
    """The tracker's key of the fan-out's run."""
    say: Callable[[str], None]
    """Prints a line of progress."""
    stop: threading.Event
    """Set when the fan-out is told to stop."""
    train: Callable[..., list[RunResult]]
    """`pipeline.training.on_ray.driver.train_unit` on this cluster, or `pipeline.training.on_ray.packs.Packs.train`."""
    room: Room
    """What the trials of one task's search have."""

    def steps(self, task: str) -> Steps:
        """A task's durable steps."""
        return Steps(join(self.storage, "workflows"), task, say=self.say, stop=self.stop)

    @property
    def device(self) -> str:
        """torch's name of what is trained on."""
        return "cuda" if self.plan.gpus_per_worker else "cpu"


@dataclass(frozen=True)
class Training:
    """The selection run and the final run of a task, one unit, and the fingerprint of all that they depend on."""

    kinds: list[str]
    specs: list[RunSpec]
    recipe: Recipe
    """With the precision that the cluster's devices give to ``auto``."""
    inputs: dict[str, Any]
    fingerprint: str

    @classmethod
    def of(cls, job: TaskJob, site: Site, manifests: dict[str, Manifest]) -> Training:
        """For a job, on these shards."""
        kinds = ["selection", "final"] if job.select else ["final"]
        specs = [spec_of(kind, job, site, manifests) for kind in kinds]
        inputs = {
            "runs": [without_places(spec) for spec in specs],
            "num_workers": site.plan.asked_workers,
            "device": site.device,
        }
        recipe = Recipe.from_dict(specs[-1].recipe)
        return cls(kinds, specs, recipe, inputs, fingerprint("train", inputs))


def spec_of(kind: str, job: TaskJob, site: Site, manifests: dict[str, Manifest]) -> RunSpec:
    """Of a ``selection`` or a ``final`` run."""
    recipe = job.recipe
    precision = resolve_precision(recipe.precision, torch.device(site.device))
    train, evaluated = ("train", "val") if kind == "selection" else ("trainval", "test")
    return RunSpec(
        task=job.task.name,
        protocol=kind,
        seed=job.seed,
        kind=job.task.kind,
        recipe=dataclasses.asdict(dataclasses.replace(recipe, precision=precision)),
        method=job.method,
        head=job.head(manifests[train].class_names),
        train=manifests[train].uri,
        evaluate=manifests[evaluated].uri,
        data_sha256={split: manifests[split].sha256 for split in (train, evaluated)},
        backbone_name=site.backbone_name,
        backbone_identity=site.backbone_identity,
        memory=job.memory,
    )


def without_places(spec: RunSpec) -> dict[str, Any]:
    """For a fingerprint: what comes out depends on what is in the shards and not on where they lie, nor (but for
    rounding) on what a step keeps in memory."""
    return {**spec.to_dict(), "train": None, "evaluate": None, "memory": None}


def identities(manifests: dict[str, Manifest]) -> dict[str, str]:
    """sha256 of each split's manifest."""
    return {split: manifest.sha256 for split, manifest in manifests.items()}
