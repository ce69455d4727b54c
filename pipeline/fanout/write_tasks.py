"""Writes many tasks' raw data as shards, or reads shards again: first all faults of the options, then task by task."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.console.command_line import FaultyOptions
from pipeline.console.secrets import shown_command
from pipeline.console.text_table import aligned, duration
from pipeline.data.compare import differences
from pipeline.data.errors import DataError
from pipeline.data.prepare import SAMPLES_PER_SHARD, discard_task, prepare_source
from pipeline.data.shards.manifest import MANIFEST_NAME, OWN_SPLITS, Manifest, load_manifest, manifest_uri
from pipeline.data.shards.writer import Progress
from pipeline.data.sources import SPLIT_SEED, open_source
from pipeline.data.verify import DamagedError, verify_task
from pipeline.reports.data_report import PAGE
from pipeline.reports.stored_data_report import FOLDER, delete_report, ensure_report, is_stale
from pipeline.storage import files
from pipeline.storage.files import StorageError
from pipeline.tasks.catalogue import TASKS, Task
from pipeline.tasks.task_file import choose_tasks

Row = dict[str, Any]
ProgressOf = Callable[[str], Progress]
"""A task's name -> the function that shows the progress of its samples."""
_COUNTS = ("classes", "train", "val", "test", "MB", "left out")


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """The command line of `jobs/write_shards.py`."""

    tasks: tuple[str, ...] = ()
    """Task names, short names or groups; empty: the task files' tasks, or all that are in `to` to be verified."""
    task_files: tuple[str, ...] = ()
    """TOML files of users' own tasks."""
    source: str | None = None
    """Folder or address of the raw data; a task with a place of its own needs none."""
    to: str
    """Root of the shards, local or s3://."""
    samples_per_shard: int = SAMPLES_PER_SHARD
    threads: int | None = None
    """How many shards are written at a time; None takes the number of processors."""
    max_skipped: int = 0
    """How many samples a task may lose: undecodable ones when shards are written, damaged ones in verification."""
    rewrite: bool = False
    """Discard the tasks' old shards, and write all of them anew."""
    report: bool = True
    """Write a report of each task's data beside its shards."""


def write_tasks(options: WriteOptions, *, say: Callable[[str], None], progress: ProgressOf) -> list[Row]:
    """Writes every task's shards; a task that fails leaves the others. Returns a row for each.

    Raises:
        FaultyOptions: before anything is written.
    """
    tasks, faults = choose_tasks(options.tasks, options.task_files)
    faults += _number_faults(options)
    addresses = _address_faults(options)
    # A faulty address is one fault, not another one for each task.
    faults += addresses + _source_faults(options, [task for task in tasks if task.data is not None or not addresses])
    if faults:
        raise FaultyOptions(faults)

    if options.rewrite:  # all of them first, so that an interrupted command goes on without --rewrite
        try:
            for task in tasks:
                discard_task(options.to, task.name)
        except (StorageError, OSError) as error:
            raise FaultyOptions([f"--to: {error}"]) from error

    def write(task: Task) -> tuple[dict[str, Manifest], list[str]]:
        source = open_source(options.source or "", task, seed=SPLIT_SEED)
        manifests = prepare_source(
            source,
            task,
            options.to,
            samples_per_shard=options.samples_per_shard,
            max_skipped=options.max_skipped,
            threads=options.threads,
            progress=progress(task.name),
        )
        skipped = [key for split in OWN_SPLITS for key in manifests[split].source.get("skipped", ())]
        notes = [*source.notes]
        notes += [f"left out, since they cannot be decoded: {', '.join(skipped)}"] if skipped else []
        if options.report:
            folder = files.join(options.to, task.name, FOLDER)
            notes += ensure_report(manifests, folder, task.recipe.decoding)
            say(f"{task.name}: look at {files.join(folder, PAGE)}")
        return manifests, notes

    places = {task.name: task.origin.rpartition(":")[0] for task in tasks if task.data is not None}
    return [_row(task.name, say, partial(write, task)) | {"place_stands_in": places.get(task.name)} for task in tasks]


def verify_tasks(options: WriteOptions, *, say: Callable[[str], None], progress: ProgressOf) -> list[Row]:
    """Reads every byte of the tasks' shards again; returns rows and raises errors as `write_tasks` does.

    The shards are also compared with their raw data, if `source` or a task file says where that is.
    """
    own, faults = choose_tasks([], options.task_files) if options.task_files else ([], [])
    faults += _number_faults(options)
    names: list[str] = []
    raw = {task.name: task for task in (*TASKS.values(), *own) if task.data or options.source is not None}
    try:
        there = written_tasks(options.to)
        named = [name for name in options.tasks if name in there]
        files_alone = options.task_files and not options.tasks
        others = [name for name in options.tasks if name not in there]
        chosen, found = choose_tasks(others, options.task_files) if others or files_alone else ([], [])
        names = [*named, *(task.name for task in chosen)] or there
        faults += [fault for fault in found if fault not in faults]
        faults += [f"{name}: no shards in {options.to}" for name in names if name not in there]
        faults += [
            f"--from {options.source}: where the raw data of {name} lies there, its task file says: add --task-file"
            for name in names
            if options.source is not None and name in there and name not in raw
        ]
        if not names:
            faults.append(f"--to {options.to}: no shards of any task there")
    except (StorageError, OSError) as error:
        faults.append(f"--to: {error}")
    if faults:
        raise FaultyOptions(faults)

    def verify(name: str) -> tuple[dict[str, Manifest], list[str]]:
        total = sum(load_manifest(manifest_uri(options.to, name, split)).num_samples for split in OWN_SPLITS)
        reads = 2 * total if name in raw else total
        tell, done = progress(name), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tell(done, reads)

        try:
            manifests, notes = verify_task(options.to, name, max_dropped=options.max_skipped, progress=advance)
        except DamagedError as error:
            raise DataError("\n".join([str(error), *_remedies(options, name, error.enough)])) from error
        whole = sum(manifests[split].num_samples for split in OWN_SPLITS)
        notes.append(f"{total:,} images read, {'all' if whole == total else f'{whole:,}'} whole")
        if name in raw:
            notes.append(_compare(options, raw[name], manifests, advance))
        folder = files.join(options.to, name, FOLDER)
        if is_stale(folder, manifests):
            if options.report:
                notes += ensure_report(manifests, folder, None)
                notes.append(f"its report is of what is left: {files.join(folder, PAGE)}")
            else:
                delete_report(folder)
        return manifests, notes

    return [_row(name, say, partial(verify, name)) for name in names]


def _compare(options: WriteOptions, task: Task, manifests: dict[str, Manifest], advance: Callable[[int], None]) -> str:
    """Compares a task's shards with its raw data; says what was done. Raises DataError if they differ."""
    if task.data is not None and not files.is_remote(task.data) and not os.path.isdir(task.data):
        return f"not compared with the raw data: no folder {task.data}"
    source = open_source(options.source or "", task, seed=SPLIT_SEED)
    if source.manifests:
        return f"not compared with the raw data: {source.uri} has shards"
    if faults := differences(source, manifests, progress=advance):
        error = DataError(f"{task.name}: the shards are whole, but not of {source.uri} as it is now", faults)
        raise DataError("\n".join([str(error), *_remedies(options, task.name, None)]))
    return f"compared with {source.uri}: every image is the same"


def _remedies(options: WriteOptions, name: str, enough: int | None) -> list[str]:
    """The commands that repair a task's damaged shards, one a line."""
    job = ["python", "jobs/write_shards.py", name]
    source = [word for file in options.task_files for word in ("--task-file", file)]
    if name not in TASKS:
        source = source or ["--task-file", "FILE.toml"]
    if options.source is not None or name in TASKS:
        source += ["--from", options.source or "RAW_DATA"]
    lines = [f"write them again, from the raw data: {shown_command([*job, *source, '--to', options.to, '--rewrite'])}"]
    if enough is not None:
        leave = [*job, "--verify", "--to", options.to, "--max-skipped", str(enough)]
        lines.append(f"or leave out what is damaged: {shown_command(leave)}")
    return lines


def written_tasks(shards_uri: str) -> list[str]:
    """The tasks that have shards under a root."""
    ends = f"/train/{MANIFEST_NAME}"
    found = [name for name in files.list_prefix(shards_uri) if name.count("/") == 2 and name.endswith(ends)]
    return [name.removesuffix(ends) for name in found]


def shards_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    header = ["task", "layout", *_COUNTS, "time"]
    cells = []
    for row in rows:
        what = row["layout"] or "failed"  # the reason is printed above the table
        counts = ["-" if row[name] is None else f"{row[name]:,}" for name in _COUNTS]
        cells.append([row["task"], what, *counts, duration(row["seconds"])])
    lines = aligned(header, cells, left=2)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def how_to_train(rows: Sequence[Row], options: WriteOptions) -> str:
    """How to train on the shards that were written: the command, and the lines to change in a file before it."""
    root = files.absolute(options.to)
    lines = []
    for row in rows:
        if row["place_stands_in"]:  # this task ignores --data
            place = json.dumps(files.join(root, row["task"]), ensure_ascii=False)
            lines += [f"in {row['place_stands_in']}, under [tasks.{row['task']}], put", f"    data = {place}"]
    command = ["python", "jobs/fanout_vtab.py"]
    command += [word for file in options.task_files for word in ("--task-file", file)]
    command += ["--tasks", ",".join(row["task"] for row in rows)]
    if not all(row["place_stands_in"] for row in rows):
        command += ["--data", root]
    return "\n".join([*lines, f"{'and ' if lines else ''}train on them: {shown_command(command)}"])


def _row(name: str, say: Callable[[str], None], work: Callable[[], tuple[dict[str, Manifest], list[str]]]) -> Row:
    started = time.monotonic()
    row: Row = dict.fromkeys(("layout", *_COUNTS, "error"))
    try:
        manifests, notes = work()
    except (DataError, StorageError, OSError) as error:
        say(f"{name}: {str(error).removeprefix(f'{name}: ')}")
        return {**row, "task": name, "error": str(error), "seconds": time.monotonic() - started}
    for note in notes:
        say(f"{name}: {note}")
    own = [manifests[split] for split in OWN_SPLITS]
    return {
        **row,
        "task": name,
        "layout": manifests["train"].source["layout"],
        "classes": len(manifests["train"].class_names),
        **{split: manifests[split].num_samples for split in OWN_SPLITS},
        "MB": round(sum(shard.bytes for manifest in own for shard in manifest.shards) / 1e6),
        "left out": sum(len(manifest.source.get("skipped", ())) for manifest in own),
        "seconds": time.monotonic() - started,
    }


def _number_faults(options: WriteOptions) -> list[str]:
    faults = []
    if options.samples_per_shard < 1:
        faults.append(f"--samples-per-shard {options.samples_per_shard}: expected at least 1")
    if options.threads is not None and options.threads < 1:
        faults.append(f"--threads {options.threads}: expected at least 1")
    if options.max_skipped < 0:
        faults.append(f"--max-skipped {options.max_skipped}: expected 0 or more")
    return faults


def _address_faults(options: WriteOptions) -> list[str]:
    faults = []
    for flag, address, reading in (("--to", options.to, False), ("--from", options.source, True)):
        try:
            if address is not None:
                files.absolute(address, reading=reading)
                if not reading:
                    files.check_writable(address)
        except StorageError as error:
            faults.append(f"{flag}: {error}")
    return faults


def _source_faults(options: WriteOptions, tasks: Sequence[Task]) -> list[str]:
    faults = []
    for task in tasks:
        if task.data is None and options.source is None:
            faults.append(f"{task.name}: no place is named for it; --from says where the raw data is")
            continue
        try:
            if open_source(options.source or "", task, seed=SPLIT_SEED).manifests:
                what = "--rewrite needs the raw data" if options.rewrite else "training takes them as they are"
                faults.append(f"{task.name}: these are shards already; {what}, --verify reads them again")
        except (DataError, StorageError, OSError) as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))
