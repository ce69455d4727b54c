"""What the tasks of a fan-out share: the frozen backbone, the places, the cluster, and where they report."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.resources import Plan, Room
from pipeline.storage.files import join
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpoints import RunResult
from pipeline.workflow.state import FanoutState
from pipeline.workflow.steps import Steps


@dataclass(frozen=True, kw_only=True)
class FrozenBackbone:
    """The frozen ViT."""

    name: str
    """timm's name."""
    identity: str
    """sha256 of the weights."""
    depth: int
    """How many blocks it has."""
    is_random: bool
    """Whether its weights are random numbers. Nothing is compared with results on those."""
    weights: Any
    """What `pipeline.training.on_ray.driver.put_backbone` returned."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a fan-out keeps what it makes."""

    storage: str
    """Folder or s3:// of shards, checkpoints and step records."""
    tracking_uri: str
    """MLflow server or sqlite:///."""
    registry_prefix: str
    """Every registered model's name begins with it."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a fan-out trains with."""

    plan: Plan
    """What the workers of a task have."""
    room: Room
    """What the trials of one task's search have."""
    train: Callable[..., list[RunResult]]
    """`pipeline.training.on_ray.driver.train_unit` on this cluster, or `pipeline.training.on_ray.packs.Packs.train`."""
    cache_shards: bool
    """Copy shards on s3:// into the nodes' caches, where they are read in every epoch."""

    @property
    def device(self) -> str:
        """torch's name of the devices that train."""
        return "cuda" if self.plan.gpus_per_worker else "cpu"


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Where a fan-out reports what it does."""

    tracker: Tracker
    """MLflow runs."""
    state: FanoutState
    """The tasks' stages, in storage."""
    key: str
    """The tracker's key of the fan-out's own run."""
    say: Callable[[str], None]
    """Prints a line of progress."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a fan-out's tasks are trained, stored and recorded; all tasks share it."""

    backbone: FrozenBackbone
    places: Places
    cluster: Cluster
    reporting: Reporting
    stop: threading.Event
    """Set when the fan-out is asked to stop."""

    def steps(self, name: str, parts: tuple[str, ...] = ()) -> Steps:
        """Durable steps.

        Args:
            name: the task's name, or a name for what several tasks have in common.
            parts: modules that this task uses and others do not.
        """
        root = join(self.places.storage, "workflows")
        return Steps(root, name, parts=parts, say=self.reporting.say, stop=self.stop)
