"""The catalogue against the table it was taken from."""

import re

import pytest

from pipeline.tasks import clip_benchmark
from pipeline.tasks.catalogue import TASKS, VTAB_GROUPS, Task, select_tasks

# zip folder, group, classes, test images, learning rate, weight decay, drop-path, HST-B, HST-S
TABLE = """
cifar natural 100 10000 1e-2 5e-4 0 76.7 76.2
caltech101 natural 102 6084 1e-3 5e-4 .1 95.1 94.8
dtd natural 47 1880 1e-2 5e-4 0 75.2 74.2
oxford_flowers102 natural 102 6149 1e-3 5e-5 0 99.6 99.6
oxford_iiit_pet natural 37 3669 1e-2 5e-4 0 91.1 90.1
svhn natural 10 26032 1e-2 5e-5 .1 91.2 90.8
sun397 natural 397 21750 1e-2 5e-5 0 52.3 47.2
patch_camelyon specialized 2 32768 5e-3 5e-4 .1 87.1 87.8
eurosat specialized 10 5400 1e-3 5e-4 .1 96.6 96.0
resisc45 specialized 45 6300 5e-3 5e-4 0 88.6 87.0
diabetic_retinopathy specialized 5 42670 1e-3 5e-5 .1 76.5 75.9
clevr_count structured 8 15000 1e-3 5e-4 .1 85.4 83.8
clevr_dist structured 6 15000 5e-3 5e-4 .1 63.7 61.8
dmlab structured 6 22735 5e-3 5e-4 .1 53.4 53.9
kitti structured 4 711 5e-3 5e-2 .1 81.8 83.2
dsprites_loc structured 16 73728 5e-3 5e-4 .1 87.2 86.3
dsprites_ori structured 16 73728 1e-3 5e-4 .1 56.8 55.4
smallnorb_azi structured 18 12150 1e-3 5e-4 .1 35.8 30.2
smallnorb_ele structured 9 12150 1e-3 5e-2 .2 52.1 46.2
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
VTAB = [task for task in TASKS.values() if task.group in VTAB_GROUPS]

# name, classes, train + val, test, learning rate, weight decay, HST-B on ImageNet-21k, on MAE
TABLE_3 = """
fgvc-cub200 200 5994 5794 1e-3 5e-2 89.2 78.7
fgvc-nabirds 555 23929 24633 5e-4 5e-2 - -
fgvc-flowers 102 2040 6149 1e-3 5e-5 99.6 91.2
fgvc-dogs 120 12000 8580 5e-3 5e-2 89.5 86.4
fgvc-cars 196 8144 8041 5e-3 5e-2 88.2 83.7
cifar100-full 100 50000 10000 5e-3 5e-2 93.6 79.7
"""


def test_the_benchmark_is_the_released_table_exactly() -> None:
    ours = [
        (
            *(task.folder, task.group, task.num_classes, task.test_size),
            *(task.recipe.learning_rate, task.recipe.weight_decay, task.recipe.drop_path),
            *(task.published["HST-B"], task.published["HST-S"]),
        )
        for task in VTAB
    ]
    table = [(folder, group, *map(float, numbers)) for folder, group, *numbers in ROWS]
    assert ours == table


def test_the_whole_data_sets_are_table_3() -> None:
    ours = []
    for task in [task for task in TASKS.values() if task.group in ("fgvc", "full")]:
        recipe = task.recipe
        assert recipe.batch_size == 128
        numbers = (task.num_classes, task.trainval_size, task.test_size, recipe.learning_rate, recipe.weight_decay)
        ours.append((task.name, *numbers, task.published.get("HST-B"), task.published.get("HST-B (MAE)")))
    rows = [line.split() for line in TABLE_3.strip().splitlines()]
    assert ours == [(name, *(None if n == "-" else float(n) for n in numbers)) for name, *numbers in rows]


def test_the_published_means_follow_from_the_table() -> None:
    """A mistyped number would change the paper's means over the 19 tasks or over the groups."""
    scores = {group: [t.published["HST-B"] for t in VTAB if t.group == group] for group in ("natural", "specialized")}
    scores["structured"] = [task.published["HST-B"] for task in VTAB if task.group == "structured"]
    means = {group: sum(numbers) / len(numbers) for group, numbers in scores.items()}
    assert means["natural"] == pytest.approx(83.03, abs=0.006)
    assert means["specialized"] == pytest.approx(87.20, abs=0.006)
    assert means["structured"] == pytest.approx(64.53, abs=0.006)
    assert sum(map(sum, scores.values())) / 19 == pytest.approx(76.12, abs=0.006)


def test_tasks_are_named_after_their_folder_with_one_exception() -> None:
    names = {task.folder: task.name for task in VTAB}
    assert names.pop("cifar") == "vtab-cifar100"
    assert names == {folder: f"vtab-{folder}" for folder in names}
    for name, task in TASKS.items():
        assert name == task.name
        assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)
        assert task.short_name == task.folder
    assert len({task.short_name for task in TASKS.values()}) == len(TASKS)


def test_the_rest_of_the_recipe_is_common_to_the_benchmark() -> None:
    assert {(t.recipe.image_size, t.recipe.epochs, t.recipe.batch_size) for t in VTAB} == {(224, 100, 64)}
    assert {(task.train_size, task.val_size) for task in VTAB} == {(800, 200)}


@pytest.mark.parametrize("name", ["cifar", "cifar100", "vtab-cifar100"])
def test_a_task_is_found_by_each_of_its_names(name: str) -> None:
    tasks, faults = select_tasks([name])
    assert ([task.name for task in tasks], faults) == (["vtab-cifar100"], [])


@pytest.mark.parametrize(
    ("group", "count"),
    [
        ("natural", 7),
        ("specialized", 4),
        ("structured", 8),
        ("vtab", 19),
        ("all", 19),
        ("fgvc", 5),
        ("full", 1),
        ("demo", 4),
    ],
)
def test_groups_select_their_tasks(group: str, count: int) -> None:
    tasks, faults = select_tasks([group])
    assert (len(tasks), faults) == (count, [])


def test_the_order_asked_for_is_kept_and_each_task_comes_once() -> None:
    tasks, faults = select_tasks(["vtab-dtd", "cifar", "natural", "dtd"])
    assert [task.folder for task in tasks[:3]] == ["dtd", "cifar", "caltech101"]
    assert (len(tasks), faults) == (7, [])


def test_unknown_names_are_all_reported_with_what_was_meant() -> None:
    tasks, faults = select_tasks(["cifer", "dtd", "../etc", "natral"])
    assert [task.name for task in tasks] == ["vtab-dtd"]
    assert len(faults) == 3
    assert "'cifer'; did you mean" in faults[0]
    assert "cifar" in faults[0]
    assert (
        "'../etc'; a task of your own needs its file: --task-file; the catalogue's tasks are vtab-cifar100" in faults[1]
    )
    assert "natural" in faults[2]


def test_naming_no_task_is_a_fault() -> None:
    assert select_tasks([])[1] != []


@pytest.mark.parametrize("name", ["", "../x", "Vtab-x", "vtab/x", "-x"])
def test_a_name_that_storage_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="task name"):
        Task(name=name, short_name="x", folder="x", group="demo", num_classes=2)


def test_the_folders_of_clip_benchmark_are_those_of_vtab_tasks_alone_and_no_two_tasks_share_one() -> None:
    assert clip_benchmark.FOLDERS.keys() == {task.name for task in VTAB} - {"vtab-sun397"}
    assert clip_benchmark.LABEL_MAPS.keys() <= set(clip_benchmark.FOLDERS.values())
    folders = [folder for task in TASKS.values() for folder in (task.folder, *task.other_folders)]
    assert len(set(folders)) == len(folders)


def test_vtabs_bins_of_dsprites_are_floors_over_finer_labels() -> None:
    location, orientation = TASKS["vtab-dsprites_loc"], TASKS["vtab-dsprites_ori"]
    assert location.label_maps["wds_vtab-dsprites_label_x_position"] == tuple(int(i / 2) for i in range(32))
    assert orientation.label_maps["wds_vtab-dsprites_label_orientation"] == tuple(int(i / 2.5) for i in range(40))
    counts = [len(orientation.class_names_in(f) or ()) for f in ("dsprites_ori", orientation.other_folders[0])]
    assert counts == [16, 40]


@pytest.mark.parametrize("label_map", [(0, 0), (0, 1, 2), (0, -1), ()])
def test_a_label_map_that_does_not_give_every_label_is_refused(label_map: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the label map of fine gives the labels .* from 0 to 1"):
        Task(name="x", short_name="x", folder="x", group="demo", num_classes=2, label_maps={"fine": label_map})


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="possible are natural"):
        Task(name="x", short_name="x", folder="x", group="other", num_classes=2)
