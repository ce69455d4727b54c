"""How long VTAB-1k's 19 final runs take on one device, alone and in packs, extrapolated from a stated part.

    python -m pipeline.benchmarks.sweep --backbone vit_base_patch16_224 --pack 19 --device cpu|cuda --output FILE.json

The tasks are as large as VTAB's: 1,000 training images, 100 epochs, and 388 thousand test images in all. Their images
are random pixels in memory, so nothing is read or decoded. Steps and evaluations are the training loop's own. Some of
them are measured, and the rest are assumed to take as long.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hst.backbone import Backbone
from hst.config import HSN_PRESETS
from hst.model import build_classifier
from hst.vit.weights import build_vit
from pipeline.benchmarks.methods import Setting
from pipeline.benchmarks.steps import uncounted
from pipeline.benchmarks.vit_command import run_benchmark, seconds_of, setting_of, vit_parser
from pipeline.console.text_table import aligned, duration
from pipeline.data.batches.streaming import Batch
from pipeline.kinds.classification import Classification
from pipeline.tasks.catalogue import TASKS, VTAB_GROUPS, Task
from pipeline.tasks.recipe import Recipe
from pipeline.training.pack import Pack
from pipeline.training.task_run import TaskRun
from pipeline.training.unit import preprocessing_of
from pipeline.training.workers import Workers

TRAIN_IMAGES, EPOCHS = 1000, 100
VTAB = [task for task in TASKS.values() if task.group in VTAB_GROUPS]


class DrawnPixels:
    """Stands in for a split: ``num_samples`` samples, by repeating one random batch."""

    def __init__(self, num_samples: int, image_size: int, num_classes: int) -> None:
        self.num_samples = num_samples
        self._size, self._classes = image_size, num_classes

    def train_batches(self, *, batch_size: int, **_: Any) -> Iterator[Batch]:
        """The whole batches of one epoch."""
        return self._batches(self.num_samples // batch_size, batch_size)

    def eval_batches(self, *, batch_size: int, **_: Any) -> Iterator[Batch]:
        """The whole batches of one evaluation."""
        return self._batches(self.num_samples // batch_size, batch_size)

    def _batches(self, count: int, batch_size: int) -> Iterator[Batch]:
        draws = torch.Generator().manual_seed(0)
        shape = (batch_size, 3, self._size, self._size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=draws)
        labels = torch.randint(self._classes, shape[:1], generator=draws)
        for first in range(0, count * batch_size, batch_size):
            yield Batch(images, labels, torch.arange(first, first + batch_size))


def runs_of(tasks: Sequence[Task], setting: Setting, options: argparse.Namespace) -> list[TaskRun]:
    """One run per task, of one epoch: some train steps, then some test batches."""
    backbone = Backbone(setting.backbone, build_vit(setting.backbone), "").to(setting.device)
    runs, before = [], uncounted(setting.device)
    for task in tasks:
        recipe = Recipe(
            image_size=setting.image_size,
            epochs=1,
            batch_size=options.batch_size,
            drop_path=task.recipe.drop_path,
            precision=options.precision,
        )
        assert task.num_classes is not None
        model = build_classifier(backbone, HSN_PRESETS[setting.hsn], num_classes=task.num_classes, task=task.name)
        splits: list[Any] = [
            DrawnPixels((before + batches) * options.batch_size, setting.image_size, task.num_classes)
            for batches in (options.steps, options.eval_batches)
        ]
        runs.append(
            TaskRun(
                task=task.name,
                seed=0,
                kind=Classification(),
                model=model.to(setting.device),
                recipe=recipe,
                preprocessing=preprocessing_of(recipe, backbone.name),
                train=splits[0],
                test=splits[1],
            )
        )
    return runs


def seconds_an_image(runs: Sequence[TaskRun], options: argparse.Namespace) -> tuple[float, float]:
    """Seconds per image of training and of evaluation, with all runs in one pack; medians without the first steps."""
    device = torch.device(options.device)
    before = uncounted(device)
    pack = Pack(Workers(device=device))
    for run in runs:
        pack.join(run.task, [run])
    train = [seconds_of(pack.step, device) for _ in range(before + options.steps)][before:]
    evaluation = [seconds_of(pack.step, device) for _ in range(before + options.eval_batches)][before:]
    images = len(runs) * options.batch_size
    return statistics.median(train) / images, statistics.median(evaluation) / images


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for tasks alone and one for packs."""
    setting = setting_of(options)
    steps = TRAIN_IMAGES // options.batch_size * EPOCHS
    trained = len(VTAB) * steps * options.batch_size
    tested = sum(task.test_size or 0 for task in VTAB)
    rows = []
    for pack in dict.fromkeys((1, options.pack)):
        train, evaluation = seconds_an_image(runs_of(VTAB[:pack], setting, options), options)
        rows.append(
            {
                "tasks_a_pack": pack,
                "train_images_per_second": round(1 / train, 2),
                "eval_images_per_second": round(1 / evaluation, 2),
                "train_images": trained,
                "test_images": tested,
                "measured_train_images": pack * options.steps * options.batch_size,
                "total_seconds": round(train * trained + evaluation * tested, 1),
            }
        )
    for row in rows:
        row["of_alone"] = round(rows[0]["total_seconds"] / row["total_seconds"], 3)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a text table."""
    cells = [
        [
            str(row["tasks_a_pack"]),
            f"{row['train_images_per_second']:,.1f}",
            f"{row['eval_images_per_second']:,.1f}",
            duration(row["total_seconds"]),
            f"{row['of_alone']:.2f}",
        ]
        for row in rows
    ]
    return "\n".join(aligned(["tasks a pack", "train img/s", "test img/s", "all in about", "of alone"], cells, left=0))


def _faults(options: argparse.Namespace) -> list[str]:
    faults = []
    if not 1 <= options.pack <= len(VTAB):
        faults.append(f"--pack {options.pack}: expected 1 to {len(VTAB)}")
    for name in ("steps", "eval_batches"):
        if getattr(options, name) < 1:
            faults.append(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1")
    if not 2 <= options.batch_size <= TRAIN_IMAGES:
        faults.append(f"--batch-size {options.batch_size}: expected 2 to {TRAIN_IMAGES}")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when everything was measured, 2 when the command line has faults."""
    parser = vit_parser(__doc__, rounds=False)
    add = parser.add_argument
    add("--pack", type=int, default=len(VTAB), help="tasks trained in one batch (default: all)")
    add("--batch-size", type=int, default=Recipe.batch_size, help="images of each task (default: the recipe's)")
    add("--steps", type=int, default=10, help="train steps measured for each pack size (default: %(default)s)")
    add("--eval-batches", type=int, default=5, help="test batches measured for each pack size (default: %(default)s)")
    return run_benchmark(parser, arguments, faults_of=_faults, measure=measure, table=table)


if __name__ == "__main__":
    sys.exit(main())
