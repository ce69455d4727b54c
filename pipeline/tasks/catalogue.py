"""The catalogue: what each task is, its recipe, and what the paper reports for it.

VTAB-1k tasks have classes, test sizes, the released scripts' learning rate, weight decay and drop-path, and the top-1
accuracies of HST-B and HST-S in the paper (arXiv 2310.05393, Table 2). FGVC and the whole CIFAR-100 have the data sets'
own splits, the released scripts' batch size, learning rate and weight decay, and both columns of Table 3. A run takes
classes and counts from its data; the numbers here only tell whether that data is the benchmark's. The demo tasks are
the project's own and have no published results.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hst.checkpoint_header import TASK_NAME
from pipeline.tasks import clip_benchmark
from pipeline.tasks.kinds import ANNOTATIONS, Measure, measure_of
from pipeline.tasks.near_names import near_names
from pipeline.tasks.recipe import Recipe
from pipeline.tasks.released_recipes import CIFAR100_RECIPE, FGVC_RECIPES

VTAB_GROUPS = ("natural", "specialized", "structured")
GROUPS = (*VTAB_GROUPS, "fgvc", "full", "demo")
OWN_GROUP = "own"
"""Group of users' own tasks, unless their file names another."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One downstream task."""

    name: str
    """Unique name, `<benchmark>-<task>`."""
    short_name: str
    """Short name that `--tasks` also accepts."""
    folder: str
    """The task's folder under the data root."""
    other_folders: tuple[str, ...] = ()
    """Other names that the folder may have, besides `folder` and `name`: other projects use them."""
    label_maps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The task's label for each label in a folder whose classes are finer than the task's, by the folder's name."""
    group: str
    """natural, specialized, structured (VTAB's groups), fgvc, full (a whole data set) or demo; for a user's own task
    `own` or a group that the user names."""
    num_classes: int | None = None
    """Number of classes of the full task; None if only the data says it."""
    class_names: tuple[str, ...] | None = None
    """Name of each class, by label; None if only the data says it."""
    train_size: int | None = None
    """Number of images in the full training split; None if only the data says it."""
    val_size: int | None = None
    """Number of images in the full validation split; None if only the data says it."""
    trainval_size: int | None = None
    """Number of images in both together, if the benchmark has no val of its own; None if only the data says it."""
    test_size: int | None = None
    """Number of images in the full test split; None if only the data says it."""
    kind: str = "classification"
    """What the task predicts: a key of `pipeline.tasks.kinds.MEASURES` and of `pipeline.kinds.KINDS`."""
    metric: str | None = None
    """The measure of its kind by which results are compared; None takes the kind's first."""
    recipe: Recipe = field(default_factory=Recipe)
    """How the task is trained by default."""
    hsn: dict[str, Any] = field(default_factory=dict)
    """Fields of HSNConfig that differ from the recipe's preset."""
    data: str | None = None
    """The task's own folder, absolute or s3://; None for its folder under the data root."""
    origin: str = ""
    """Where a user's own task is defined, as `<file>:<line>`; empty in this catalogue."""
    published: dict[str, float] = field(default_factory=dict)
    """The paper's results on the full task in per cent, by the paper's name of the method."""

    def __post_init__(self) -> None:
        """Raises ValueError for a name that storage or registry would refuse, or an unknown group, kind or metric."""
        if not TASK_NAME.fullmatch(self.name):
            raise ValueError(f"task name {self.name!r}: expected lower-case letters, digits, _ and -, as in vtab-dtd")
        if self.group not in GROUPS and not self.origin:
            raise ValueError(f"task {self.name}: group {self.group!r}; possible are {', '.join(GROUPS)}")
        measure_of(self.kind, self.metric)
        for folder, label_map in self.label_maps.items():
            last = (self.num_classes or 0) - 1
            if set(label_map) != set(range(last + 1)):
                raise ValueError(
                    f"task {self.name}: the label map of {folder} gives the labels {sorted(set(label_map))}; "
                    f"expected every label from 0 to {last}"
                )

    @property
    def measure(self) -> Measure:
        """The measure by which results of the task are compared."""
        return measure_of(self.kind, self.metric)

    @property
    def annotation(self) -> str:
        """How its samples are labelled: a key of `pipeline.data.annotations.ANNOTATIONS`."""
        return ANNOTATIONS[self.kind]

    def label_map_of(self, folder: str) -> tuple[int, ...] | None:
        """The task's label for each label in a folder (a path or an address); None if they are the same."""
        return self.label_maps.get(os.path.basename(folder))

    def class_names_in(self, folder: str) -> Sequence[str] | None:
        """The classes of the labels in a folder: their names, else their numbers; None if only the data says it."""
        if label_map := self.label_map_of(folder):
            return [str(label) for label in range(len(label_map))]
        if self.class_names is not None or self.num_classes is None:
            return self.class_names
        return [str(label) for label in range(self.num_classes)]


def _vtab(
    folder: str,
    group: str,
    num_classes: int,
    test_size: int,
    settings: tuple[float, float, float],
    published: tuple[float, float],
    *,
    name: str | None = None,
) -> Task:
    """A VTAB-1k task with 800 + 200 training images. ``settings`` are learning rate, weight decay and drop-path."""
    learning_rate, weight_decay, drop_path = settings
    name = name or f"vtab-{folder}"
    tars = clip_benchmark.FOLDERS.get(name)
    return Task(
        name=name,
        short_name=folder,
        folder=folder,
        other_folders=(tars,) if tars else (),
        label_maps={tars: clip_benchmark.LABEL_MAPS[tars]} if tars in clip_benchmark.LABEL_MAPS else {},
        group=group,
        num_classes=num_classes,
        train_size=800,
        val_size=200,
        test_size=test_size,
        recipe=Recipe(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            drop_path=drop_path,
            decoding="stored",  # as the benchmark's images are read everywhere
        ),
        published={"HST-B": published[0], "HST-S": published[1]},
    )


def _whole(
    name: str,
    folders: tuple[str, ...],
    num_classes: int,
    sizes: tuple[int, int],
    recipe: Recipe,
    published: tuple[float, float] | None,
    *,
    group: str = "fgvc",
    val_size: int | None = None,
) -> Task:
    """A task of Table 3. ``sizes`` are the number of images in trainval and in test."""
    trainval_size, test_size = sizes
    short_name = name.removeprefix("fgvc-")
    return Task(
        name=name,
        short_name=short_name,
        folder=short_name,
        other_folders=folders,
        group=group,
        num_classes=num_classes,
        train_size=None if val_size is None else trainval_size - val_size,
        val_size=val_size,
        trainval_size=trainval_size,
        test_size=test_size,
        recipe=recipe,
        published=dict(zip(("HST-B", "HST-B (MAE)"), published, strict=True)) if published else {},
    )


def _demo(folder: str, num_classes: int, **changes: float | int) -> Task:
    # With batches of 64, 200 images make only three steps an epoch. A batch size of 16 was chosen on val: with it every
    # task gains (seed 0, in the order below, per cent: 91.2 -> 92.5, 86.2 -> 88.8, 66.2 -> 73.8, 73.8 -> 77.5), for an
    # eighth more training time.
    recipe = dataclasses.replace(
        Recipe(image_size=64, epochs=15, batch_size=16, learning_rate=5e-3),
        **changes,  # type: ignore[arg-type]
    )
    return Task(
        name=f"demo-{folder}",
        short_name=folder,
        folder=folder,
        group="demo",
        num_classes=num_classes,
        recipe=recipe,
    )


_ALL = (
    _vtab("cifar", "natural", 100, 10000, (1e-2, 5e-4, 0.0), (76.7, 76.2), name="vtab-cifar100"),
    _vtab("caltech101", "natural", 102, 6084, (1e-3, 5e-4, 0.1), (95.1, 94.8)),
    _vtab("dtd", "natural", 47, 1880, (1e-2, 5e-4, 0.0), (75.2, 74.2)),
    _vtab("oxford_flowers102", "natural", 102, 6149, (1e-3, 5e-5, 0.0), (99.6, 99.6)),
    _vtab("oxford_iiit_pet", "natural", 37, 3669, (1e-2, 5e-4, 0.0), (91.1, 90.1)),
    _vtab("svhn", "natural", 10, 26032, (1e-2, 5e-5, 0.1), (91.2, 90.8)),
    _vtab("sun397", "natural", 397, 21750, (1e-2, 5e-5, 0.0), (52.3, 47.2)),
    _vtab("patch_camelyon", "specialized", 2, 32768, (5e-3, 5e-4, 0.1), (87.1, 87.8)),
    _vtab("eurosat", "specialized", 10, 5400, (1e-3, 5e-4, 0.1), (96.6, 96.0)),
    _vtab("resisc45", "specialized", 45, 6300, (5e-3, 5e-4, 0.0), (88.6, 87.0)),
    _vtab("diabetic_retinopathy", "specialized", 5, 42670, (1e-3, 5e-5, 0.1), (76.5, 75.9)),
    _vtab("clevr_count", "structured", 8, 15000, (1e-3, 5e-4, 0.1), (85.4, 83.8)),
    _vtab("clevr_dist", "structured", 6, 15000, (5e-3, 5e-4, 0.1), (63.7, 61.8)),
    _vtab("dmlab", "structured", 6, 22735, (5e-3, 5e-4, 0.1), (53.4, 53.9)),
    _vtab("kitti", "structured", 4, 711, (5e-3, 5e-2, 0.1), (81.8, 83.2)),
    _vtab("dsprites_loc", "structured", 16, 73728, (5e-3, 5e-4, 0.1), (87.2, 86.3)),
    _vtab("dsprites_ori", "structured", 16, 73728, (1e-3, 5e-4, 0.1), (56.8, 55.4)),
    _vtab("smallnorb_azi", "structured", 18, 12150, (1e-3, 5e-4, 0.1), (35.8, 30.2)),
    _vtab("smallnorb_ele", "structured", 9, 12150, (1e-3, 5e-2, 0.2), (52.1, 46.2)),
    _whole("fgvc-cub200", ("CUB_200_2011",), 200, (5994, 5794), FGVC_RECIPES["cub200"], (89.2, 78.7)),
    _whole("fgvc-nabirds", (), 555, (23929, 24633), FGVC_RECIPES["nabirds"], None),
    _whole("fgvc-flowers", ("flowers-102",), 102, (2040, 6149), FGVC_RECIPES["flowers"], (99.6, 91.2), val_size=1020),
    _whole("fgvc-dogs", ("stanford_dogs",), 120, (12000, 8580), FGVC_RECIPES["dogs"], (89.5, 86.4)),
    _whole("fgvc-cars", ("stanford_cars", "wds_cars"), 196, (8144, 8041), FGVC_RECIPES["cars"], (88.2, 83.7)),
    _whole("cifar100-full", ("cifar-100-python",), 100, (50000, 10000), CIFAR100_RECIPE, (93.6, 79.7), group="full"),
    _demo("digits", 10),
    _demo("shape_x", 8),
    _demo("shape_orientation", 8),
    _demo("shape_count", 6),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""Every task by its full name, in the order of tables."""

# CIFAR-100 is the only task whose VTAB folder does not have its name.
_ALIASES = {"cifar100": "vtab-cifar100"}
TAKEN_NAMES = {*TASKS, *(task.short_name for task in _ALL), *_ALIASES, *GROUPS, OWN_GROUP, "vtab", "all"}
"""Names that `--tasks` already understands; a user's own task cannot have them."""


def full_name(name: str) -> str:
    """The full name of a catalogue task, given its full or short name. Other names are returned as they are."""
    by_short_name = {task.short_name: task.name for task in TASKS.values()}
    return _ALIASES.get(name, name if name in TASKS else by_short_name.get(name, name))


def select_tasks(names: Sequence[str], own: Sequence[Task] = ()) -> tuple[list[Task], list[str]]:
    """Finds tasks by full names, short names and groups.

    Args:
        names: Names of tasks and of GROUPS, and "vtab" or "all" (the 19 VTAB-1k tasks).
        own: Users' own tasks, found by their names and groups.

    Returns:
        The tasks in the order asked for, each once, and a fault for every unknown name.
    """
    selected: dict[str, Task] = {}
    faults: list[str] = []
    by_short_name = {task.short_name: task for task in (*TASKS.values(), *own)}
    groups = dict.fromkeys([*GROUPS, *(task.group for task in own)])
    benchmark = [task for task in TASKS.values() if task.group in VTAB_GROUPS]
    for name in names:
        if name in ("vtab", "all"):
            found = benchmark
        elif name in groups:
            found = [task for task in (*TASKS.values(), *own) if task.group == name]
        else:
            task = TASKS.get(full_name(name)) or by_short_name.get(name)
            found = [task] if task else []
        if not found and name == OWN_GROUP:
            faults.append("no task is in group own: --task-file names a file with tasks of your own")
        elif not found:
            known = [*TASKS, *by_short_name, *_ALIASES, "vtab", "all", *groups]
            faults.append(_unknown_task(name, known))
        selected.update({task.name: task for task in found})
    if not names:
        faults.append(f"no task is named; possible are task names, vtab, all, {', '.join(GROUPS)}")
    return list(selected.values()), faults


def _unknown_task(name: str, known: list[str]) -> str:
    if meant := near_names(name, known):
        return f"no task is called {name!r}; {meant}"
    own = "a task of your own needs its file: --task-file"
    groups = ", ".join(["vtab", "all", *GROUPS])
    return f"no task is called {name!r}; {own}; the catalogue's tasks are {', '.join(TASKS)}; groups are {groups}"
