"""The layouts of raw data that are read as they are, each with what it is known by and its reader."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.data.raw.cars import is_cars, read_cars
from pipeline.data.raw.cifar_pickles import is_cifar_pickles, read_cifar_pickles
from pipeline.data.raw.class_folders import is_class_folders, read_class_folders
from pipeline.data.raw.dogs import is_dogs, read_dogs
from pipeline.data.raw.flowers import is_flowers, read_flowers
from pipeline.data.raw.id_lists import is_id_lists, read_id_lists
from pipeline.data.raw.photo_folders import is_photo_folders, read_photo_folders
from pipeline.data.raw.sample_table import is_sample_table, read_sample_table
from pipeline.data.raw.tars import is_tars, read_tars
from pipeline.data.raw.vtab_lists import is_vtab_lists, read_vtab_lists
from pipeline.data.samples import Listing
from pipeline.tasks.catalogue import Task


@dataclass(frozen=True)
class Layout:
    """One way in which people keep the images of a task and their labels."""

    name: str
    """Recorded with the shards that are made of it."""
    sign: str
    """What it is known by, for people."""
    is_there: Callable[[str], bool]
    """Whether a folder has it."""
    read: Callable[[str, Task, int, Sequence[str]], Listing]
    """Reads these splits in a task's folder, opens no image, and collects every fault; the seed is for draws.

    Of a split that is not asked for, nothing but what stands in one file with the others is read, and the others come
    out the same.
    """
    is_remote: bool = False
    """Whether it is read from s3:// and the like too."""
    own_tasks_only: bool = False
    """Whether it lacks what a benchmark prescribes, and is for users' own tasks."""

    def is_for(self, task: Task) -> bool:
        """Whether a task may be read from it."""
        return bool(task.origin) or not self.own_tasks_only


# The first that is there is read: a list that says what is meant goes before files that merely lie there.
LAYOUTS = (
    Layout(
        "vtab-lists",
        "train800.txt (VTAB-1k lists)",
        is_vtab_lists,
        lambda folder, task, _, splits: read_vtab_lists(folder, task.class_names_in(folder), splits),
    ),
    Layout(
        "table",
        "samples.csv or samples.parquet (a table)",
        is_sample_table,
        lambda folder, task, _, splits: read_sample_table(folder, task.class_names_in(folder), splits),
    ),
    Layout(
        "id-lists",
        "image_class_labels.txt (CUB-200-2011, NABirds)",
        is_id_lists,
        lambda folder, _task, _seed, splits: read_id_lists(folder, splits),
    ),
    Layout(
        "flowers",
        "setid.mat (Oxford Flowers-102)",
        is_flowers,
        lambda folder, task, _, splits: read_flowers(folder, task.class_names_in(folder), splits),
    ),
    Layout(
        "dogs",
        "train_list.mat (Stanford Dogs)",
        is_dogs,
        lambda folder, _task, _seed, splits: read_dogs(folder, splits),
    ),
    Layout(
        "cars", "cars_meta.mat (Stanford Cars)", is_cars, lambda folder, _task, _seed, splits: read_cars(folder, splits)
    ),
    Layout(
        "cifar-pickles",
        "cifar-100-python/ (CIFAR-100)",
        is_cifar_pickles,
        lambda folder, _task, _seed, splits: read_cifar_pickles(folder, splits),
    ),
    Layout(
        "tars",
        "train/nshards.txt or train/shards.txt (WebDataset tars)",
        is_tars,
        lambda folder, task, _, splits: read_tars(folder, task, splits),
        is_remote=True,
    ),
    Layout(
        "class-folders",
        "train/<class>/ (a folder per class)",
        is_class_folders,
        lambda folder, _task, _seed, splits: read_class_folders(folder, splits),
    ),
    Layout(
        "photo-folders",
        "<class>/ (a folder per class, no splits)",
        is_photo_folders,
        lambda folder, task, seed, splits: read_photo_folders(folder, task.name, seed, splits),
        own_tasks_only=True,
    ),
)
