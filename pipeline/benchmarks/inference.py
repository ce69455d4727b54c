"""Prediction with HST beside the plain ViT, for several batch sizes and for batches with samples of several tasks.

    python -m pipeline.benchmarks.inference --backbone vit_base_patch16_224 --batch-sizes 1,32,128 --tasks 8 \\
        --device cpu|cuda --output FILE.json

`vit` is timm's model with a linear classifier, and `hst` is one task. `mixed` is a batch with samples of several tasks
(see `hst.multitask`); `by task` predicts the same samples one task after another. The column `tasks` has their number,
at most the number of images. On CUDA every way is measured twice, as it is and `recorded` as a graph. There the side
network of `hst` runs on a stream of its own beside the ViT; that of `hst in turn` waits for the ViT's end.

All ways take turns in one process, and numbers are medians over the rounds. `of vit` is the rate relative to the ViT's
in the same round; a recorded way is compared with the recorded ViT. `paper's img/s` is from the paper's Table 9 and is
shown only for the paper's ViT, image size and HSN.
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
from hst.gpu.recorded import Recorder, Tensors
from hst.model import TaskModel, build_classifier
from hst.multitask import forward_tasks
from pipeline.benchmarks.methods import METHODS, Setting
from pipeline.benchmarks.steps import recorder_of, uncounted
from pipeline.benchmarks.vit_command import NUM_CLASSES, numbers, run_benchmark, seconds_of, setting_of, vit_parser
from pipeline.console.text_table import aligned

PAPER = {("vit", 1): 118, ("vit", 32): 303, ("vit", 128): 306, ("hst", 1): 97, ("hst", 32): 277, ("hst", 128): 284}
"""(way, batch size) -> images a second, in the paper's Table 9: ViT-B/16 at 224 px, HST in parallel mode, their GPU."""

RECORDED = " recorded"
Way = Callable[[torch.Tensor], Tensors]


def ways(setting: Setting, num_tasks: int, *, precision: str = "float32") -> dict[str, Way]:
    """The ways to predict a batch, by name."""
    found = {name: _in_precision(way, setting, precision) for name, way in _ways(setting, num_tasks).items()}
    if setting.device.type != "cuda":
        return found
    recorder = recorder_of(setting.device)
    return found | {f"{name}{RECORDED}": _recorded(name, way, recorder) for name, way in found.items()}


def _in_precision(way: Way, setting: Setting, precision: str) -> Way:
    def predict(images: torch.Tensor) -> Tensors:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return way(images)

    return predict


def _recorded(name: str, way: Way, recorder: Recorder) -> Way:
    return lambda images: recorder.run([], name, way, [images])


def _ways(setting: Setting, num_tasks: int) -> dict[str, Way]:
    one = METHODS["hst"](setting)
    assert isinstance(one.model, TaskModel)
    extractor = one.model.extractor
    backbone, hsn = one.model.backbone, HSN_PRESETS[setting.hsn]
    models = [
        build_classifier(backbone, hsn, num_classes=NUM_CLASSES, task=f"task-{i}").to(setting.device).eval()
        for i in range(num_tasks)
    ]

    def parts(images: torch.Tensor) -> list[torch.Tensor]:
        return [part for part in images.tensor_split(num_tasks) if len(part)]

    vit = METHODS["linear"](setting)

    @torch.no_grad()
    def mixed(images: torch.Tensor) -> list[torch.Tensor]:
        own = parts(images)
        return forward_tasks(models[: len(own)], own)

    def in_turn(images: torch.Tensor) -> list[torch.Tensor]:
        extractor.beside = False
        try:
            return [one.predict(images)]
        finally:
            extractor.beside = True

    found: dict[str, Way] = {"vit": lambda images: [vit.predict(images)], "hst": lambda images: [one.predict(images)]}
    if setting.device.type == "cuda":
        found["hst in turn"] = in_turn
    found["mixed"] = mixed
    found["by task"] = lambda images: [m.predict(part) for m, part in zip(models, parts(images), strict=False)]
    return found


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each batch size and way."""
    setting = setting_of(options)
    found = ways(setting, options.tasks, precision=options.precision)
    before = uncounted(setting.device)
    is_papers = (setting.backbone.startswith("vit_base_patch16"), setting.image_size, setting.hsn) == (
        True,
        224,
        "HSN_B",
    )
    rows = []
    for batch_size in options.batch_sizes:
        images = torch.randn(batch_size, 3, setting.image_size, setting.image_size, device=setting.device)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for number in range(before + options.rounds):
            for name, way in found.items():
                spent = seconds_of(functools.partial(way, images), setting.device)
                if number >= before:
                    seconds[name].append(spent)
        for name, own in seconds.items():
            plain_name = name.removesuffix(RECORDED)
            vit = seconds["vit" + name[len(plain_name) :]]
            rows.append(
                {
                    "batch_size": batch_size,
                    "way": name,
                    "tasks": min(options.tasks, batch_size) if plain_name in ("mixed", "by task") else 1,
                    "images_per_second": round(batch_size / statistics.median(own), 3),
                    "of_vit": round(statistics.median(a / b for a, b in zip(vit, own, strict=True)), 3),
                    "paper_images_per_second": PAPER.get((plain_name, batch_size)) if is_papers else None,
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a text table."""
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
    """Returns 0 when everything was measured, 2 when the command line has faults."""
    parser = vit_parser(__doc__)
    add = parser.add_argument
    add("--batch-sizes", type=numbers, default=[1, 32, 128], metavar="N,...", help="batch sizes (default: 1,32,128)")
    add("--tasks", type=int, default=8, help="tasks in a mixed batch (default: %(default)s)")
    return run_benchmark(parser, arguments, faults_of=_faults, measure=measure, table=table)


if __name__ == "__main__":
    sys.exit(main())
