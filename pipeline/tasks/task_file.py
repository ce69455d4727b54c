"""Reads users' own tasks from a TOML file of tables `[tasks.<name>]`, so that nobody has to edit the catalogue.

    [tasks.acme-photos]
    data = "photos"              # a folder, relative to this file, or s3://; default: <--data>/<folder>

    [tasks.acme-photos.recipe]   # any field of Recipe
    epochs = 40

    [tasks.acme-photos.hsn]      # any field of HSNConfig
    num_registers = 2

All faults of a file are reported together, with their lines.
"""

import dataclasses
import os
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from hst.checkpoint_header import TASK_NAME
from hst.config import HSN_PRESETS, HSNConfig
from pipeline.storage import files as storage
from pipeline.tasks.catalogue import OWN_GROUP, TAKEN_NAMES, Task, select_tasks
from pipeline.tasks.class_names import class_name, name_faults
from pipeline.tasks.kinds import MEASURES
from pipeline.tasks.recipe import Recipe, RecipeError
from pipeline.tasks.toml_table import Table, read_table

_RECIPE_FIELDS = typing.get_type_hints(Recipe)
_HSN_FIELDS = typing.get_type_hints(HSNConfig)
_TASK_FIELDS: dict[str, Any] = {
    "data": str,
    "folder": str,
    "group": str,
    "kind": str,
    "metric": str,
    "classes": int,
    "class_names": tuple[str, ...],
    "train_size": int,
    "val_size": int,
    "test_size": int,
    "recipe": dict,
    "hsn": dict,
}


def choose_tasks(names: Sequence[str], files: Sequence[str]) -> tuple[list[Task], list[str]]:
    """Chooses the tasks of a command line: those named, else those of its files, else the benchmark's.

    Args:
        names: Values of `--tasks`: task names, short names and groups, also of the files' tasks.
        files: Values of `--task-file`.

    Returns:
        The tasks, each once, and every fault of the names and the files. With faults, tasks may be missing.
    """
    faults: list[str] = []
    own: dict[str, Task] = {}
    faulty: set[str] = set()
    # Read a file once, even if it is named twice.
    tables = [read_table(file, faults) for file in {os.path.realpath(file): file for file in files}.values()]
    for table in tables:
        for name, task in _read_tasks(table, own) if table is not None else ():
            if task is None:
                faulty |= {name, OWN_GROUP}
            else:
                own[name] = task
    for task in own.values():
        if task.group in own:
            faults.append(f"{task.origin}: tasks.{task.name}: group {task.group!r} is the name of a task, too")
    if not names:
        return (list(own.values()), faults) if files else select_tasks(["all"])
    sound = [name for name in names if name not in faulty]
    tasks, found = select_tasks(sound, list(own.values())) if sound else ([], [])
    return tasks, faults + (found if None not in tables else [])  # an unreadable file may define the name


def _read_tasks(file: Table, earlier: dict[str, Task]) -> Iterable[tuple[str, Task | None]]:
    """Every task of a file by name, with None for a task that has faults."""
    file.fields({"tasks": dict})
    tasks = file.table("tasks")
    if tasks is None:
        return
    if not tasks.values:
        tasks.fault("no task: expected a table [tasks.<name>] for each")
    for name in tasks.values:
        before = len(file.faults)
        table = tasks.table(name)
        if not TASK_NAME.fullmatch(name):
            tasks.fault("no task name: expected lower-case letters, digits, _ and -, as in acme-photos", name)
        elif name in TAKEN_NAMES:
            tasks.fault("the catalogue has a task or a group of this name; choose another, as in acme-photos", name)
        elif name in earlier:
            tasks.fault(f"a task of this name stands in {earlier[name].origin} already", name)
        fields = _read_task(table) if table is not None else {}
        if len(file.faults) == before:
            yield name, Task(name=name, short_name=name, **fields)
            continue
        if table is not None:
            _check_place(table, fields)
        yield name, None


def _read_task(table: Table) -> dict[str, Any]:
    """The fields of a table's task, without its names. If faults were added, they must not be used."""
    given = table.fields(_TASK_FIELDS, _hint_in_task)
    _check(table, given)
    recipe_table, hsn_table = table.table("recipe"), table.table("hsn")
    recipe = _read_recipe(recipe_table) if recipe_table is not None else Recipe()
    hsn = _read_hsn(hsn_table, recipe.hsn) if hsn_table is not None else {}
    same = ("class_names", "train_size", "val_size", "test_size", "kind", "metric")
    names = given.get("class_names")
    if names is not None:
        given["class_names"] = tuple(map(class_name, names))
    return {
        **{key: given[key] for key in same if key in given},
        "folder": given.get("folder", table.path[-1]),
        "group": given.get("group", OWN_GROUP),
        "num_classes": len(names) if names else given.get("classes"),
        "recipe": recipe,
        "hsn": hsn,
        "data": _place(table, given["data"]) if "data" in given else None,
        "origin": f"{table.file}:{table.line()}",
    }


def _check(table: Table, given: dict[str, Any]) -> None:
    """Adds the faults of values that have the right type."""
    for key, least in {"classes": 2, "train_size": 1, "val_size": 1, "test_size": 1}.items():
        if key in given and given[key] < least:
            table.fault(f"expected a whole number of at least {least}; found {given[key]}", key)
    kind, metric = given.get("kind", Task.kind), given.get("metric")
    if kind not in MEASURES:
        table.fault(f"expected one of {', '.join(MEASURES)}; found {kind!r}", "kind")
    elif metric is not None and metric not in (metrics := [measure.name for measure in MEASURES[kind]]):
        table.fault(f"expected one of {', '.join(metrics)}; found {metric!r}", "metric")
    if "data" in given and "folder" in given:
        table.fault("data is the task's own folder, folder is one below --data: keep one of them", "folder")
    folder = given.get("folder")
    if folder is not None and (not folder or os.path.isabs(folder) or ".." in folder.split("/")):
        table.fault(f"expected a folder below --data; found {folder!r} (data names a folder anywhere)", "folder")
    group = given.get("group", OWN_GROUP)
    if group != OWN_GROUP and (group in TAKEN_NAMES or not TASK_NAME.fullmatch(group)):
        table.fault(
            f"expected {OWN_GROUP!r} or a group of your own (lower-case letters, digits, _ and -) whose name the "
            f"catalogue does not have; found {group!r}",
            "group",
        )
    if "classes" in given and "class_names" in given:
        table.fault("class_names says how many classes there are: leave classes away", "classes")
    names = given.get("class_names")
    if names is not None:
        if len(names) < 2:
            table.fault(f"expected at least 2 names; found {len(names)}", "class_names")
        for fault in name_faults([(f"name {number}", name) for number, name in enumerate(names, 1)]):
            table.fault(fault, "class_names")


def _place(table: Table, data: str) -> str | None:
    """The full address of a task's data; a relative path starts at the file's folder."""
    try:
        address = storage.absolute(data, reading=True)
    except storage.StorageError as error:
        table.fault(str(error), "data")
        return None
    if storage.is_remote(data) or data.startswith("file://"):
        return address
    place = os.path.join(os.path.dirname(table.file), os.path.expanduser(data))
    return storage.absolute(place if os.path.lexists(place) else place.replace("\\", "/"))  # as in lists: see `Root`


def _check_place(table: Table, fields: dict[str, Any]) -> None:
    """Checks that the data of a task with other faults exists. A sound task's data is opened later, where needed."""
    place = fields["data"]
    if place is not None and not storage.is_remote(place) and not os.path.isdir(place):
        table.fault(f"{place}: no such folder", "data")


def _read_recipe(table: Table) -> Recipe:
    given = table.fields(_RECIPE_FIELDS, lambda key: _elsewhere(key, "hsn", _HSN_FIELDS, table.path[:-1]))
    try:
        return Recipe(**given)
    except RecipeError as error:
        for fault in error.faults:
            field = fault.partition("=")[0]
            table.fault(fault, *([field] if field in given else []))
        return Recipe(hsn=given["hsn"]) if given.get("hsn") in HSN_PRESETS else Recipe()


def _read_hsn(table: Table, preset: str) -> dict[str, Any]:
    given = table.fields(_HSN_FIELDS, lambda key: _elsewhere(key, "recipe", _RECIPE_FIELDS, table.path[:-1]))
    sound = dict(given)
    while True:  # HSNConfig reports only its first fault: leave that field out and try again
        try:
            dataclasses.replace(HSN_PRESETS[preset], **sound)
            return given
        except ValueError as error:
            field = str(error).partition("=")[0]
            table.fault(str(error), *([field] if field in given else []))
            if sound.pop(field, None) is None:
                return given


def _hint_in_task(key: str) -> str | None:
    for place, fields in (("recipe", _RECIPE_FIELDS), ("hsn", _HSN_FIELDS)):
        if key in fields:
            return f"{key} goes into the task's table .{place}"
    return {"num_classes": "did you mean classes?", "name": "the task's name is its table's"}.get(key)


def _elsewhere(key: str, place: str, fields: dict[str, Any], task: tuple[str, ...]) -> str | None:
    return f"{key} goes into [{'.'.join((*task, place))}]" if key in fields else None
