"""How fast images are written to shards, streamed from disk and S3, and read from memory, beside decoding alone.

    python -m pipeline.benchmarks.data_streams --data ~/vtab-1k --tasks dtd,oxford_iiit_pet --output FILE.json

For each number in `--cores` the process is bound to that many cores. Each round measures every rate once, and also a
bare loop that decodes the same bytes from memory, one image after another, in as many processes. A rate is compared
with the bare loop by the median of the ratios within a round. An S3 server on this machine (`--s3 s3://bucket/prefix`,
with its address in $AWS_ENDPOINT_URL) should run on the other cores. Memory is the peak of an epoch from the shards in
a fresh process, minus its memory before the first sample.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hst.preprocessing import Preprocessing
from pipeline.cluster.machine import machine
from pipeline.console.command_line import local_path
from pipeline.console.progress import Printer, counted
from pipeline.data.batches.streaming import Split, open_split
from pipeline.data.errors import DataError
from pipeline.data.images import image_member
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.index import load_index
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.data.sources import open_source
from pipeline.storage import files
from pipeline.tasks.catalogue import Task, select_tasks

SPLIT = "test"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, write the file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the tasks' raw data")
    parser.add_argument("--tasks", default="dtd,oxford_iiit_pet", help="separated by commas (default: %(default)s)")
    parser.add_argument("--s3", help="s3:// prefix to write shards to and stream from (default: only the disk)")
    parser.add_argument(
        "--copies", type=int, default=8, help="how often an epoch repeats each image, for small tasks (default: 8)"
    )
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument(
        "--cores", type=int, nargs="+", default=[1, 2], help="numbers of cores to measure on, in turn (default: 1 2)"
    )
    parser.add_argument("--output", type=local_path, required=True, help="the JSON file of results")
    options = parser.parse_args(arguments)
    tasks, faults = select_tasks(options.tasks.split(","))
    if faults:
        print("error: " + "; ".join(faults), file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            roots = {"disk": f"{folder}/shards"} | ({"s3": options.s3} if options.s3 else {})
            rows = [
                row
                for task in tasks
                for row in measure(
                    task,
                    _enlarged(task, options.data, Path(folder) / "raw", options.copies),
                    roots,
                    preprocessing=Preprocessing(image_size=options.image_size),
                    rounds=options.rounds,
                    cores=options.cores,
                )
            ]
    except (DataError, files.StorageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    versions = machine("torch", "pillow", "webdataset", "boto3")
    report = {**versions, "image_size": options.image_size, "copies": options.copies, "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))
    return 0


def _enlarged(task: Task, data: str, folder: Path, copies: int) -> str:
    """Write the task's images as one folder per class, and those of SPLIT ``copies`` times; return the root folder.

    The copies make an epoch last seconds, so that its start does not dominate.
    """
    for split, samples in open_source(data, task).splits.items():
        for copy in range(copies if split == SPLIT else 1):
            for number, sample in enumerate(samples):
                image = sample.read()
                of_class = folder / task.folder / split / f"class-{sample.label:04d}"
                of_class.mkdir(parents=True, exist_ok=True)
                (of_class / f"{copy}-{number}.{image_member(image)}").write_bytes(image)
    return str(folder)


def measure(
    task: Task,
    data: str,
    roots: dict[str, str],
    *,
    preprocessing: Preprocessing,
    rounds: int,
    cores: Sequence[int],
) -> list[dict[str, Any]]:
    """One row for each subject and number of cores; rates are in images a second."""
    say = Printer()
    manifests = {name: prepare_task(task, data, root)[SPLIT] for name, root in roots.items()}
    disk = manifests["disk"]
    images = [s.image for s in ShardReader(disk, load_index(disk)).read(range(disk.num_samples))]
    everything = os.sched_getaffinity(0)
    rows = []
    for count in cores:
        if count > len(everything):
            say(f"{task.name}: this machine does not have {count} cores; left out")
            continue
        os.sched_setaffinity(0, sorted(everything)[:count])
        pool = ProcessPoolExecutor(count, get_context("spawn"), _keep, (images, preprocessing))
        try:
            streams = {f"{name}, first epoch": manifest for name, manifest in manifests.items()}
            memory = {name: _memory_of(manifest, preprocessing, count) for name, manifest in streams.items()}
            subjects: dict[str, Callable[[], float]] = {"write": lambda: _write(task, data)}
            for name, manifest in streams.items():
                subjects[name] = _streamed(manifest, preprocessing)
            subjects["later epochs, in memory"] = _kept(disk, preprocessing)
            rates: dict[str, list[float]] = {name: [] for name in ["decode", *subjects]}
            _decode(pool, count)  # starts the pool's processes
            for number in range(rounds):
                rates["decode"].append(_decode(pool, count) * len(images))
                for name, subject in subjects.items():
                    rates[name].append(subject())
                say(f"{task.name}, {counted(count, 'core')}: round {number + 1} of {rounds}")
        finally:
            pool.shutdown()
            os.sched_setaffinity(0, everything)
        for name, found in rates.items():
            against = [rate / decode for rate, decode in zip(found, rates["decode"], strict=True)]
            rows.append(
                {
                    "task": task.name,
                    "images": disk.num_samples,
                    "cores": count,
                    "subject": name,
                    "images_per_second": round(statistics.median(found), 1),
                    "of_bare_decoding": round(statistics.median(against), 3),
                    "peak_memory_bytes": memory.get(name),
                }
            )
    return rows


def _memory_of(manifest: Manifest, preprocessing: Preprocessing, cores: int) -> int:
    """Peak bytes of an epoch from the shards, above a process that has opened the split but read no sample."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_epoch_in_fresh_process, manifest, preprocessing, cores).result()


def _epoch_in_fresh_process(manifest: Manifest, preprocessing: Preprocessing, cores: int) -> int:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    epoch = _streamed(manifest, preprocessing)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _from_status("VmRSS")
    epoch()
    return _from_status("VmHWM") - before


def _from_status(field: str) -> int:
    """A field of /proc/self/status in bytes; the file has it in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def _decode(pool: ProcessPoolExecutor, count: int) -> float:
    """Run the bare loop in ``count`` processes at once; return how often a second all images are decoded."""
    started = time.perf_counter()
    for future in [pool.submit(_decode_all) for _ in range(count)]:
        future.result()
    return count / (time.perf_counter() - started)


_kept_images: list[bytes] = []
_kept_preprocessing = Preprocessing()


def _keep(images: list[bytes], preprocessing: Preprocessing) -> None:
    """Initialise a process of the bare loop."""
    global _kept_images, _kept_preprocessing
    _kept_images, _kept_preprocessing = images, preprocessing


def _decode_all() -> None:
    for image in _kept_images:
        _kept_preprocessing.pixels(image)


def _epoch(split: Split) -> float:
    started = time.perf_counter()
    count = sum(len(batch.labels) for batch in split.eval_batches(batch_size=64))
    return count / (time.perf_counter() - started)


def _streamed(manifest: Manifest, preprocessing: Preprocessing) -> Callable[[], float]:
    return partial(_epoch, open_split(manifest.uri, preprocessing, memory_limit_bytes=0))


def _kept(manifest: Manifest, preprocessing: Preprocessing) -> Callable[[], float]:
    split = open_split(manifest.uri, preprocessing)
    _epoch(split)
    return partial(_epoch, split)


def _write(task: Task, data: str) -> float:
    """Images a second when all splits are written as shards, index and manifests, decoding each image once."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        manifests = prepare_task(task, data, folder)
        seconds = time.perf_counter() - started
    return (manifests["trainval"].num_samples + manifests[SPLIT].num_samples) / seconds


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| task | cores | | images/s | of bare decoding | MiB |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.0f}"
        rate = f"{row['images_per_second']:,}"
        cells = [row["task"], row["cores"], row["subject"], rate, row["of_bare_decoding"], memory]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
