"""The options of a fan-out, and the checks that find all their faults before anything starts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hst.backbone import Backbone, check_supported, load_backbone
from hst.config import DEFAULT_BACKBONE, HSNConfig
from hst.lookup import look_up
from hst.methods import METHODS
from pipeline.cluster.resources import NumWorkers, num_workers_fault, worker_bounds, workers_text
from pipeline.console.command_line import FaultyOptions
from pipeline.console.secrets import shown
from pipeline.data.errors import DataError
from pipeline.data.shards.manifest import SPLITS
from pipeline.data.sources import SPLIT_SEED, open_source
from pipeline.registry.versions import registered_name
from pipeline.search.checks import Given, plan_search, read_search
from pipeline.search.plan import SearchOptions
from pipeline.search.space import HSN_FIELDS
from pipeline.storage.files import StorageError, absolute, check_writable, fetch, is_remote
from pipeline.storage.locations import default_data, default_experiment, default_storage, default_tracking_uri
from pipeline.tasks.catalogue import Task
from pipeline.tasks.recipe import Recipe, step_fault
from pipeline.tasks.recipe_faults import MIN_IMAGE_SIZE
from pipeline.tasks.settings import apply_settings
from pipeline.tasks.task_file import choose_tasks
from pipeline.tracking.mlflow_client import TrackingError, check_experiment_name, check_tracking_uri, is_reachable
from pipeline.training.unit import with_pixels_of
from pipeline.workflow.job import TaskJob

AUTO_PACK = 0
"""Packs as many tasks as there are for each device and as fit into its memory."""


@dataclass(frozen=True, kw_only=True)
class FanoutOptions:
    """The command line of the fan-out."""

    tasks: tuple[str, ...] = ()
    """Task names, short names or groups. If empty: the task files' tasks, or without files the whole benchmark."""
    task_files: tuple[str, ...] = ()
    """TOML files of users' own tasks."""
    data: str | None = None
    """Folder or s3:// with raw data or shards, for tasks that do not name their own; None: the user's default."""
    backbone: str = DEFAULT_BACKBONE
    """timm's name of the backbone."""
    backbone_weights: str | None = None
    """Path or s3:// of its weights, ``random``, or None for timm's download."""
    storage: str = field(default_factory=default_storage)
    """Folder or s3:// for shards, checkpoints and step records."""
    tracking_uri: str = field(default_factory=default_tracking_uri)
    """MLflow server or sqlite:///."""
    experiment: str = field(default_factory=default_experiment)
    """MLflow's experiment for the runs."""
    settings: tuple[str, ...] = ()
    """Settings ``field=value`` of a recipe or an HSN."""
    num_workers: NumWorkers = 1
    """Number of train workers a task, or the fewest and the most."""
    pack: int = 1
    """Most tasks that a worker trains in one batch; AUTO_PACK: as many as fit."""
    max_concurrent: int | None = None
    """Most tasks at once; None: as many as the cluster holds."""
    seed: int = 0
    """Seed of every random draw."""
    select: bool = True
    """Whether to make the selection runs."""
    cache_shards: bool = False
    """Whether to copy shards on s3:// that are read in every epoch into the nodes' caches."""
    registry_prefix: str = ""
    """Prefix of every registered model's name."""
    seeds: int = 1
    """Number of trainings a task, with consecutive seeds."""
    search: SearchOptions | None = None
    """Options of a search for each task's recipe and side network before training; None: no search."""
    search_only: bool = False
    """Whether to search and train nothing."""


def check(options: FanoutOptions) -> tuple[FanoutOptions, list[TaskJob], Backbone]:
    """Checks the options, and makes the jobs and the frozen backbone.

    Returns:
        The options, with full addresses and local weights, the jobs, and the backbone.

    Raises:
        FaultyOptions: It has every fault of names, settings, data, weights, locations and numbers.
    """
    faults: list[str] = []
    tasks, found = choose_tasks(options.tasks, options.task_files)
    faults += found
    recipes: dict[str, tuple[Recipe, HSNConfig]] = {}
    for task in tasks:
        recipe, hsn, found = apply_settings(task.recipe, options.settings, task.hsn)
        faults += found
        recipes[task.name] = (recipe, hsn)
    if not tasks:  # check the settings even without tasks
        faults += apply_settings(Recipe(), options.settings)[2]
    faults += _check_numbers(options)
    options, found = _check_locations(options)
    faults += found
    root, sizes, found = _check_data(options, tasks)
    faults += found
    options, backbone, found = _load_backbone(options)
    faults += found
    trials_option = "--trials" if options.search_only else "--search"
    given, found = read_search(options.search, options.seeds, trials_option=trials_option)
    faults += found
    faults += _idle_settings(options, {name: recipe for name, (recipe, _) in recipes.items()})
    faults += _pack_faults(options, {name: recipe for name, (recipe, _) in recipes.items()})
    searched = None if options.search is None else _Searched(options.search, given, _fixed(options))
    jobs = []
    for task in tasks:
        job, found = _job(options, task, *recipes[task.name], task.data or root, sizes.get(task.name, {}))
        faults += found
        if backbone is not None:
            job, found = _fitted(job, backbone, searched)
            faults += found
        jobs.append(job)
    if faults or backbone is None:
        raise FaultyOptions(list(dict.fromkeys(faults)))
    return options, jobs, backbone


class _Searched(NamedTuple):
    """What the command line says about the searches of all tasks."""

    options: SearchOptions
    given: Given
    """What the search space's file gives."""
    fixed: set[str]
    """Fields that `--set` has fixed."""


def _fixed(options: FanoutOptions) -> set[str]:
    return {setting.partition("=")[0].strip() for setting in options.settings}


def _job(
    options: FanoutOptions, task: Task, recipe: Recipe, hsn: HSNConfig, data: str, samples: dict[str, int]
) -> tuple[TaskJob, list[str]]:
    """A task's job, and the reasons why it could make no train step."""
    most_workers = worker_bounds(options.num_workers)[1]
    trained = [samples[split] for split in _trained_on(options) if split in samples]
    faults = [fault for count in trained if (fault := step_fault(recipe, count, most_workers)) is not None]
    job = TaskJob(
        task=task,
        recipe=recipe,
        hsn=hsn,
        seed=options.seed,
        data=data,
        num_samples=samples,
        select=options.select,
        num_seeds=options.seeds,
    )
    return job, [f"{task.name}: {fault}" for fault in faults]


def _fitted(job: TaskJob, backbone: Backbone, searched: _Searched | None) -> tuple[TaskJob, list[str]]:
    """The job with its side network resolved for the backbone and its search planned, and what does not fit."""
    task, recipe = job.task, with_pixels_of(job.recipe, backbone.name)
    try:
        hsn = job.hsn.resolve(backbone.depth)
        if recipe.head_input == "side+cls" and not backbone.has_class_token:
            raise ValueError(f"head_input=side+cls: backbone {backbone.name!r} has no class token")
        _check_image_size(recipe.image_size, backbone.patch_size)
        if searched is None:
            return dataclasses.replace(job, recipe=recipe, hsn=hsn), []
        search, faults = plan_search(searched.options, searched.given, searched.fixed, recipe, hsn, backbone)
    except ValueError as error:
        return job, [f"{task.origin}: {task.name}: {error}" if task.origin else str(error)]
    return dataclasses.replace(job, recipe=recipe, hsn=hsn, search=search), faults


def _idle_settings(options: FanoutOptions, recipes: Mapping[str, Recipe]) -> list[str]:
    """Fields of HST's side network that `--set` names, and a task's method does not have."""
    fields = sorted(_fixed(options) & HSN_FIELDS)
    return [
        f"--set {', '.join(fields)}: of HST's side network, and {name} is tuned by {recipe.method}; leave it out"
        for name, recipe in recipes.items()
        if fields and recipe.method != "hst"
    ]


def _pack_faults(options: FanoutOptions, recipes: Mapping[str, Recipe]) -> list[str]:
    """Why tasks cannot share a batch; nothing where ``--pack`` does not ask for it."""
    if options.pack == 1:
        return []
    by_method: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        by_method.setdefault(recipe.method, []).append(name)
    faults = [
        f"--pack: {', '.join(names)}: method {method} cannot share a pass through the ViT; leave --pack out"
        for method, names in by_method.items()
        if not look_up(METHODS, method, "method").packable
    ]
    if len({recipe.precision == "float64" for recipe in recipes.values()}) > 1:
        faults.append("--pack: tasks of precision float64 and others cannot share a batch; run them separately")
    return faults


def _check_image_size(image_size: int, patch_size: int) -> None:
    """Raises ValueError for a size that is no multiple of the patch: the ViT would not see the rest at the edge."""
    if over := image_size % patch_size:
        nearest = [size for size in (image_size - over, image_size - over + patch_size) if size >= MIN_IMAGE_SIZE]
        raise ValueError(
            f"image_size={image_size}: no multiple of the ViT's patch of {patch_size} pixels; nearest: "
            f"{' and '.join(map(str, nearest))}"
        )


def is_data_unused(options: FanoutOptions, jobs: list[TaskJob]) -> bool:
    """Whether a data root was named but no task reads from it."""
    return options.data is not None and all(job.task.data is not None for job in jobs)


def _check_numbers(options: FanoutOptions) -> list[str]:
    faults = []
    if (fault := num_workers_fault(options.num_workers)) is not None:
        faults.append(fault)
    if options.max_concurrent is not None and options.max_concurrent < 1:
        faults.append(f"--max-concurrent {options.max_concurrent}: expected at least 1")
    if options.pack < 0:
        faults.append(f"--pack {options.pack}: expected the number of tasks that are trained in one batch, at least 1")
    if options.pack != 1 and options.num_workers != 1:
        faults.append(
            f"--pack with --num-workers {workers_text(options.num_workers)}: a pack is trained by one worker; "
            "leave one of them out"
        )
    return faults


def _check_locations(options: FanoutOptions) -> tuple[FanoutOptions, list[str]]:
    """Checks storage, tracking and registry names. Returns the options with storage as a full address, and faults."""
    faults = []
    try:
        options = dataclasses.replace(options, storage=absolute(options.storage))
        check_writable(options.storage)
    except StorageError as error:
        faults.append(f"--storage: {error}")
    try:
        check_tracking_uri(options.tracking_uri)
        if options.tracking_uri.startswith("http") and not is_reachable(options.tracking_uri):
            faults.append(f"--tracking-uri {shown(options.tracking_uri)}: no MLflow server answers there")
        check_experiment_name(options.experiment)
        registered_name("task", options.registry_prefix)
    except TrackingError as error:
        faults.append(str(error))
    return options, faults


def _check_data(options: FanoutOptions, tasks: list[Task]) -> tuple[str, dict[str, dict[str, int]], list[str]]:
    """Checks the data without opening an image.

    Returns:
        The full address of the data root, the number of images of each split by task, and all faults.
    """
    sizes: dict[str, dict[str, int]] = {}
    faults = []
    usable = True  # the data root: its fault is reported once, not for every task
    root = options.data or default_data()
    try:
        root = absolute(root, reading=True)
    except StorageError as error:
        faults.append(f"--data: {error}")
        usable = False
    if usable and not is_remote(root) and not os.path.isdir(root):
        usable = False
        # Tasks with faults are not in the list. They may name their own data, so they need no default.
        if any(task.data is None for task in tasks) or (not tasks and options.data is not None):
            faults.append(f"--data {root}: no such folder; --data or HST_DATA names the one with the tasks' data")
    for task in tasks:
        if task.data is None and not usable:
            continue
        where = "--data" if task.data is None else f"{task.origin}: data"
        try:
            source = open_source(root, task, seed=SPLIT_SEED, without_test=options.search_only)
        except DataError as error:
            faults.append(f"{where}: {error}")
            continue
        except (StorageError, OSError) as error:
            faults.append(f"{where}: {error}")
            usable = usable and task.data is not None
            continue
        splits = [split for split in SPLITS if split != "test" or not options.search_only]
        sizes[task.name] = {split: source.num_samples(split) for split in splits}
    return root, sizes, faults


def _trained_on(options: FanoutOptions) -> tuple[str, ...]:
    """The splits that runs train on."""
    if options.search_only:
        return ("train",)
    return ("train", "trainval") if options.select or options.search else ("trainval",)


def _load_backbone(options: FanoutOptions) -> tuple[FanoutOptions, Backbone | None, list[str]]:
    """Loads the backbone. Weights on S3 are fetched into the cache, and the options then name the local file."""
    weights = options.backbone_weights
    try:
        check_supported(options.backbone)
    except ValueError as error:
        return options, None, [f"--backbone: {error}"]
    try:
        if weights is not None and weights != "random":
            options = dataclasses.replace(options, backbone_weights=str(fetch(weights)))
        return options, load_backbone(options.backbone, options.backbone_weights), []
    except (ValueError, OSError) as error:
        flag = "--backbone" if weights is None else "--backbone-weights"
        return options, None, [f"{flag}: {error}"]
