"""The layouts of raw data that can be read directly, each with its reader and the sign by which it is recognised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.data.annotations.annotation import annotation_of
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
    """One way of storing the images of a task and their labels."""

    name: str
    """Name, which is recorded with the shards that are written from it."""
    sign: str
    """How people recognise it."""
    is_there: Callable[[str], bool]
    """Whether a folder has this layout."""
    read: Callable[[str, Task, int, Sequence[str]], Listing]
    """Reads (folder, task, seed, splits) without opening an image, and collects all faults; the seed is for draws.

    Of other splits it reads only what shares a file with these splits. The result for a split does not depend on
    whether others are read.
    """
    is_remote: bool = False
    """Whether it can also be read from s3:// and https:// addresses."""
    own_tasks_only: bool = False
    """Whether only users' own tasks may use it, because it lacks something that a benchmark prescribes."""

    has_any_label: bool = False
    """Whether its labels may be of any annotation; elsewhere an image's place says its class."""

    def is_for(self, task: Task) -> bool:
        """Whether a task may be read from it."""
        is_labelled = self.has_any_label or annotation_of(task.annotation).has_classes
        return is_labelled and (bool(task.origin) or not self.own_tasks_only)


# The first match is read: layouts with an explicit list come before those that use any files they find.
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
        lambda folder, task, _, splits: read_sample_table(
            folder, task.class_names_in(folder), splits, annotation_of(task.annotation)
        ),
        has_any_label=True,
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
