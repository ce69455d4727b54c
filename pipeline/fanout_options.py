"""What a fan-out is asked to do, and every fault of it found before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hst.backbone import Backbone, load_backbone
from hst.config import DEFAULT_BACKBONE, HSNConfig
from pipeline.data.errors import DataError
from pipeline.data.sources import open_source
from pipeline.locations import default_data, default_storage, default_tracking_uri
from pipeline.mlflow_client import TrackingError, check_tracking_uri
from pipeline.storage import StorageError, absolute, fetch, is_remote
from pipeline.tasks.catalogue import Task, select_tasks
from pipeline.tasks.recipe import Recipe, apply_settings
from pipeline.workflow import SPLIT_SEED, TaskJob


@dataclass(frozen=True, kw_only=True)
class FanoutOptions:
    """The command line of the fan-out."""

    tasks: tuple[str, ...] = ("all",)
    """Task names, short names or groups."""
    data: str = field(default_factory=default_data)
    """Folder or s3:// of the raw data or shards."""
    backbone: str = DEFAULT_BACKBONE
    """timm's name."""
    backbone_weights: str | None = None
    """Path or s3:// of its weights, ``random``, or None for timm's own download."""
    storage: str = field(default_factory=default_storage)
    """Folder or s3:// for shards, checkpoints and step records."""
    tracking_uri: str = field(default_factory=default_tracking_uri)
    """MLflow server or sqlite:///."""
    settings: tuple[str, ...] = ()
    """``field=value`` of a recipe or an HSN."""
    num_workers: int = 1
    """Train workers a task."""
    max_concurrent: int | None = None
    """Most tasks at once; None: as many as the cluster holds."""
    seed: int = 0
    """Of every draw."""
    select: bool = True
    """Make the selection runs."""
    registry_prefix: str = ""
    """In front of every registered model's name."""


class FaultyOptions(ValueError):
    """Every fault of a command line at once; `faults` has one message each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def check(options: FanoutOptions) -> tuple[list[TaskJob], Backbone]:
    """The jobs and the frozen backbone that the options ask for.

    Raises:
        FaultyOptions: with every fault of names, settings, data, weights, locations and numbers.
    """
    faults: list[str] = []
    tasks, found = select_tasks(options.tasks)
    faults += found
    recipes: dict[str, tuple[Recipe, HSNConfig]] = {}
    for task in tasks:
        recipe, hsn, found = apply_settings(task.recipe, options.settings)
        faults += found
        recipes[task.name] = (recipe, hsn)
    if not tasks:  # the settings are checked all the same
        faults += apply_settings(Recipe(), options.settings)[2]
    faults += _check_numbers(options)
    faults += _check_locations(options)
    faults += _check_data(options, tasks)
    backbone, found = _load_backbone(options)
    faults += found
    jobs = []
    for task in tasks:
        recipe, hsn = recipes[task.name]
        if backbone is not None:
            try:
                hsn = hsn.resolve(backbone.depth)
                if recipe.head_input == "side+cls" and not backbone.has_class_token:
                    raise ValueError(f"head_input=side+cls: backbone {backbone.name!r} has no class token")
                if recipe.image_size < backbone.patch_size:
                    raise ValueError(f"image_size={recipe.image_size}: smaller than a patch of {backbone.patch_size}")
            except ValueError as error:
                faults.append(str(error))
        jobs.append(
            TaskJob(task=task, recipe=recipe, hsn=hsn, seed=options.seed, data=options.data, select=options.select)
        )
    if faults or backbone is None:
        raise FaultyOptions(list(dict.fromkeys(faults)))
    return jobs, backbone


def _check_numbers(options: FanoutOptions) -> list[str]:
    faults = []
    if options.num_workers < 1:
        faults.append(f"--num-workers {options.num_workers}: expected at least 1")
    if options.max_concurrent is not None and options.max_concurrent < 1:
        faults.append(f"--max-concurrent {options.max_concurrent}: expected at least 1")
    return faults


def _check_locations(options: FanoutOptions) -> list[str]:
    faults = []
    try:
        storage = absolute(options.storage)
        if not is_remote(storage):
            os.makedirs(storage, exist_ok=True)
            if not os.access(storage, os.W_OK):
                faults.append(f"--storage {storage}: this user must not write there")
    except (OSError, StorageError) as error:
        faults.append(f"--storage {options.storage}: {error}")
    try:
        check_tracking_uri(options.tracking_uri)
    except TrackingError as error:
        faults.append(f"--tracking-uri {options.tracking_uri}: {error}")
    return faults


def _check_data(options: FanoutOptions, tasks: list[Task]) -> list[str]:
    faults = []
    for task in tasks:
        try:
            open_source(options.data, task, seed=SPLIT_SEED)
        except (DataError, StorageError, OSError) as error:
            faults.append(f"--data: {task.name}: {error}")
    return faults


def _load_backbone(options: FanoutOptions) -> tuple[Backbone | None, list[str]]:
    try:
        return load_backbone(options.backbone, local_weights(options)), []
    except FileNotFoundError as error:
        return None, [f"--backbone-weights: {error}"]
    except (ValueError, OSError, StorageError) as error:
        flag = "--backbone" if options.backbone_weights is None else "--backbone-weights"
        hint = "" if options.backbone_weights else " (without --backbone-weights, timm downloads them)"
        return None, [f"{flag}: {error}{hint}"]


def local_weights(options: FanoutOptions) -> str | None:
    """The weights as `hst.backbone.load_backbone` takes them; what lies on S3 is fetched into the cache."""
    weights = options.backbone_weights
    return str(fetch(weights)) if weights is not None and is_remote(weights) else weights
