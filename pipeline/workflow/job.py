"""One task of a fan-out as it will be trained, its work while it is under way, and its two training runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from hst.config import HSNConfig
from hst.model import hst_spec
from pipeline.data.shards.manifest import Manifest
from pipeline.kinds.kind import task_kind
from pipeline.search.plan import SearchPlan
from pipeline.tasks.catalogue import Task
from pipeline.tasks.kinds import MEASURES, Measure
from pipeline.tasks.recipe import Recipe
from pipeline.tracking.tracker import Tracker
from pipeline.training.precision import resolve_precision
from pipeline.training.unit import RunSpec, parts_of
from pipeline.workflow.site import Site
from pipeline.workflow.steps import Steps

PROTOCOLS = {
    True: "train, last epoch on val; then trainval, last epoch on test once",
    False: "no selection run; trainval, last epoch on test once",
}
"""How a task is trained, with a selection run and without, in words that are recorded and compared."""


class RunSplits(NamedTuple):
    """What one training run reads."""

    train: str
    """The split that it trains on."""
    evaluated: str
    """The split that it is evaluated on."""


RUN_SPLITS = {"selection": RunSplits("train", "val"), "final": RunSplits("trainval", "test")}
"""The two training runs of a task, by the protocol of their `RunSpec`."""


@dataclass(frozen=True, kw_only=True)
class TaskJob:
    """One task of a fan-out, as it will be trained."""

    task: Task
    recipe: Recipe
    hsn: HSNConfig
    """The side network, resolved for the backbone."""
    seed: int
    data: str
    """URI of the raw data or shards."""
    num_samples: dict[str, int] = field(default_factory=dict)
    """Images of train, val, trainval and test, as the source counts them."""
    select: bool = True
    """Make the selection run; without it the version is never promoted by itself."""
    search: SearchPlan | None = None
    """How to search for the recipe and the side network before the task is trained."""
    num_seeds: int = 1
    """How many trainings to make. The first has this job's seed, and its checkpoint is registered; the others have the
    seeds that follow."""
    fitting_memory: str = "speed"
    """The mode of `hst.config.MEMORY_MODES` that fits by the plan, for a recipe that leaves it open."""

    @property
    def method(self) -> dict[str, Any]:
        """How the task is tuned, as `hst.model.build_task_model` takes it."""
        name = self.recipe.method
        return hst_spec(self.hsn) if name == "hst" else {"name": name}

    def head(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The head of the task with these classes, as `hst.model.build_task_model` takes it."""
        return task_kind(self.task.kind).head_spec(self.recipe, class_names)

    @property
    def memory(self) -> str:
        """One of `hst.config.MEMORY_MODES`."""
        return self.fitting_memory if self.recipe.memory == "auto" else self.recipe.memory

    @property
    def parts(self) -> tuple[str, ...]:
        """Modules that this task uses and others do not: those of its method, its head, its kind and its labels."""
        return parts_of(self.task.kind, self.recipe.method, self.head(())["kind"], self.task.annotation)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures of the task's kind."""
        return MEASURES[self.task.kind]


@dataclass(frozen=True, kw_only=True)
class TaskWork:
    """A task under way: its shards are there, and its MLflow run has a key."""

    job: TaskJob
    site: Site
    key: str
    """The tracker's key of the run."""
    manifests: dict[str, Manifest]
    """The shards, by split."""
    subset_reasons: tuple[str, ...] = ()
    """Why the data is not the benchmark's; empty where it is."""

    @property
    def name(self) -> str:
        """The task's name."""
        return self.job.task.name

    @property
    def tracker(self) -> Tracker:
        """Where the run is recorded."""
        return self.site.reporting.tracker

    @property
    def steps(self) -> Steps:
        """The task's durable steps."""
        return steps_of(self.job, self.site)

    def say(self, line: str) -> None:
        """Prints a line about the task."""
        self.site.reporting.say(f"{self.name}: {line}")

    def set_stage(self, stage: str, **details: Any) -> None:
        """Notes in the fan-out's state what the task is doing (`FanoutState.set`)."""
        self.site.reporting.state.set(self.name, stage, **details)


@dataclass(frozen=True)
class Training:
    """The selection run and the final run of a task, one unit, and the fingerprint of all that they depend on."""

    protocols: list[str]
    """The keys of RUN_SPLITS whose runs are made."""
    specs: list[RunSpec]
    """One for each protocol."""
    recipe: Recipe
    """The recipe, with the precision that ``auto`` means on the cluster's devices."""
    inputs: dict[str, Any]
    """JSON values that the results depend on."""
    fingerprint: str
    """The fingerprint of the step ``train``."""

    @classmethod
    def of(cls, job: TaskJob, site: Site, manifests: dict[str, Manifest]) -> Training:
        """The training of a job on these shards."""
        protocols = [protocol for protocol in RUN_SPLITS if job.select or protocol == "final"]
        specs = [spec_of(protocol, job, site, manifests) for protocol in protocols]
        inputs = {
            "runs": [without_places(spec) for spec in specs],
            "num_workers": site.cluster.plan.asked_workers,
            "device": site.cluster.device,
        }
        recipe = Recipe.from_dict(specs[-1].recipe)
        return cls(protocols, specs, recipe, inputs, steps_of(job, site).fingerprint("train", inputs))


def steps_of(job: TaskJob, site: Site) -> Steps:
    """The durable steps of a job's task."""
    return site.steps(job.task.name, job.parts)


def spec_of(protocol: str, job: TaskJob, site: Site, manifests: dict[str, Manifest]) -> RunSpec:
    """The spec of a job's run; ``protocol`` is a key of RUN_SPLITS."""
    recipe = job.recipe
    precision = resolve_precision(recipe.precision, torch.device(site.cluster.device))
    train, evaluated = RUN_SPLITS[protocol]
    return RunSpec(
        task=job.task.name,
        protocol=protocol,
        seed=job.seed,
        kind=job.task.kind,
        recipe=dataclasses.asdict(dataclasses.replace(recipe, precision=precision)),
        method=job.method,
        head=job.head(manifests[train].class_names),
        train=manifests[train].uri,
        evaluate=manifests[evaluated].uri,
        data_sha256={split: manifests[split].sha256 for split in (train, evaluated)},
        backbone_name=site.backbone.name,
        backbone_identity=site.backbone.identity,
        memory=job.memory,
    )


def without_places(spec: RunSpec) -> dict[str, Any]:
    """A spec for a fingerprint, without the shards' places and the memory mode.

    A result depends on what is in the shards and not on where they lie, nor (but for rounding) on what a step keeps.
    """
    return {**spec.to_dict(), "train": None, "evaluate": None, "memory": None}


def identities(manifests: dict[str, Manifest]) -> dict[str, str]:
    """sha256 of each split's manifest."""
    return {split: manifest.sha256 for split, manifest in manifests.items()}
