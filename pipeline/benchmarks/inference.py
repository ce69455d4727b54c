"""Prediction with HST beside the plain ViT, by the images of a batch, and of batches with samples of several tasks.

    python -m pipeline.benchmarks.inference --backbone vit_base_patch16_224 --batch-sizes 1,32,128 --tasks 8 \
        --device cpu|cuda --output FILE.json

`vit` is timm's model with a linear classifier, `hst` one task, `mixed` a batch with samples of so many tasks (see
`hst.multitask`), `by task` the same samples, a task after the other. All take turns in one process; numbers are medians
over the rounds, and `of vit` ratios round by round.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hst.config import HSN_PRESETS
from hst.model import TaskModel, build_task_model
from hst.multitask import forward_tasks
from pipeline.benchmarks.methods import METHODS, Setting
from pipeline.benchmarks.vit_command import NUM_CLASSES, numbers, run_benchmark, seconds_of, setting_of, vit_parser
from pipeline.reports.table import aligned

PAPER = {("vit", 1): 118, ("vit", 32): 303, ("vit", 128): 306, ("hst", 1): 97, ("hst", 32): 277, ("hst", 128): 284}
"""The paper's images a second (Table 9; ViT-B/16 at 224 px, HST in its parallel mode), on a GPU of theirs."""

Way = Callable[[torch.Tensor], object]


def ways(setting: Setting, num_tasks: int) -> dict[str, Way]:
    """By name, what predicts a batch."""
    one = METHODS["hst"](setting)
    assert isinstance(one.model, TaskModel)
    backbone, hsn = one.model.backbone, HSN_PRESETS[setting.hsn]
    models = [
        build_task_model(backbone, hsn, num_classes=NUM_CLASSES, task=f"task-{i}").to(setting.device).eval()
        for i in range(num_tasks)
    ]

    def parts(images: torch.Tensor) -> list[torch.Tensor]:
        return [part for part in images.tensor_split(num_tasks) if len(part)]

    @torch.no_grad()
    def mixed(images: torch.Tensor) -> None:
        own = parts(images)
        forward_tasks(models[: len(own)], own)

    def by_task(images: torch.Tensor) -> None:
        for model, part in zip(models, parts(images), strict=False):
            model.predict(part)

    return {"vit": METHODS["linear"](setting).predict, "hst": one.predict, "mixed": mixed, "by task": by_task}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of images and way."""
    setting = setting_of(options)
    found = ways(setting, options.tasks)
    is_papers = (setting.backbone.startswith("vit_base_patch16"), setting.image_size, setting.hsn) == (
        True,
        224,
        "HSN_B",
    )
    rows = []
    for batch_size in options.batch_sizes:
        images = torch.randn(batch_size, 3, setting.image_size, setting.image_size, device=setting.device)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for number in range(options.rounds + 1):
            for name, way in found.items():
                with torch.autocast(setting.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                    spent = seconds_of(functools.partial(way, images), setting.device)
                if number:  # the first one is for what comes once
                    seconds[name].append(spent)
        for name, own in seconds.items():
            rows.append(
                {
                    "batch_size": batch_size,
                    "way": name,
                    "tasks": min(options.tasks, batch_size) if name in ("mixed", "by task") else 1,
                    "images_per_second": round(batch_size / statistics.median(own), 3),
                    "of_vit": round(statistics.median(a / b for a, b in zip(seconds["vit"], own, strict=True)), 3),
                    "paper_images_per_second": PAPER.get((name, batch_size)) if is_papers else None,
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people."""
    cells = [
        [
            str(row["batch_size"]),
            row["way"],
            str(row["tasks"]),
            f"{row['images_per_second']:.2f}",
            f"{row['of_vit']:.2f}",
            "-" if row["paper_images_per_second"] is None else str(row["paper_images_per_second"]),
        ]
        for row in rows
    ]
    return "\n".join(aligned(["batch", "way", "tasks", "img/s", "of vit", "paper's img/s"], cells, left=2))


def _faults(options: argparse.Namespace) -> list[str]:
    return [f"--tasks {options.tasks}: expected at least 1"] if options.tasks < 1 else []


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured; 2: the command line has faults."""
    parser = vit_parser(__doc__)
    add = parser.add_argument
    add("--batch-sizes", type=numbers, default=[1, 32, 128], metavar="N,...", help="images (default: 1,32,128)")
    add("--tasks", type=int, default=8, help="in a mixed batch (default: %(default)s)")
    return run_benchmark(parser, arguments, faults_of=_faults, measure=measure, table=table)


if __name__ == "__main__":
    sys.exit(main())
