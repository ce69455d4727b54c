"""Train steps of several tasks on one frozen ViT: one task after another, and all in one batch.

    python -m pipeline.benchmarks.packing --backbone vit_base_patch16_224 --tasks 1,2,4,8,19 --batch-size 32 \\
        --device cpu|cuda --output FILE.json

A round is one step of every task, done in every way in turn in one process (on CUDA the steps are recorded as graphs).
Numbers are medians over the rounds. `MB a task` is the memory of one more task, counted from its parameters, their
gradients, AdamW's two moments, and its buffers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hst.backbone import Backbone
from hst.config import HSN_PRESETS, MEMORY_MODES
from hst.model import TaskModel, build_classifier
from hst.multitask import forward_tasks
from hst.vit.weights import build_vit
from pipeline.benchmarks.methods import Setting
from pipeline.benchmarks.steps import Steps, recorder_of, uncounted
from pipeline.benchmarks.vit_command import (
    batch_size_faults,
    numbers,
    run_benchmark,
    seconds_of,
    setting_of,
    vit_parser,
)
from pipeline.console.text_table import aligned
from pipeline.training.memory import saved_bytes

WAYS = ("alone", "packed", "stacked")
"""`alone`: one model after another. `packed`: one pass through the ViT, then one side network after another.
`stacked`: one pass through the ViT, then all side networks together."""


class Tasks:
    """Task models on one ViT, each with a batch of random pixels.

    Args:
        setting: backbone, side network, image size and device.
        count: number of tasks.
        batch_size: images of each task.
        precision: ``float32`` or ``bfloat16``.
        memory: one of `hst.config.MEMORY_MODES`.
        num_registers: replaces the preset's number of registers; None keeps it.
    """

    def __init__(
        self,
        setting: Setting,
        count: int,
        *,
        batch_size: int,
        precision: str,
        memory: str = "speed",
        num_registers: int | None = None,
    ) -> None:
        self._device, self._low = setting.device, precision == "bfloat16"
        backbone = Backbone(setting.backbone, build_vit(setting.backbone), "").to(self._device)
        hsn = HSN_PRESETS[setting.hsn]
        if num_registers is not None:
            hsn = dataclasses.replace(hsn, num_registers=num_registers)
        self.models: list[TaskModel] = []
        for i in range(count):
            model = build_classifier(backbone, hsn, num_classes=setting.num_classes, task=f"task-{i}").to(self._device)
            model.memory = memory
            self.models.append(model.train())
        recorder = recorder_of(self._device)
        self._alone = [Steps(list(model.parameters()), recorder) for model in self.models]
        everything = [p for model in self.models for p in model.parameters()]
        self._together = {way: Steps(everything, recorder) for way in WAYS[1:]}
        draws = torch.Generator().manual_seed(0)
        shape = (batch_size, 3, setting.image_size, setting.image_size)
        self._images = [torch.randn(shape, generator=draws).to(self._device) for _ in self.models]
        self._labels = torch.randint(setting.num_classes, shape[:1], generator=draws).to(self._device)

    def step(self, way: str) -> None:
        """One train step of all tasks, in one of WAYS."""
        if way == "alone":
            for model, images, steps in zip(self.models, self._images, self._alone, strict=True):
                steps.step(functools.partial(self._loss_of, model), [images])
        else:
            self._together[way].step(functools.partial(self._loss, way == "stacked"), self._images)

    def _loss_of(self, model: TaskModel, images: torch.Tensor) -> torch.Tensor:
        """The loss of one model alone."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._low):
            return model(images, self._labels)["loss"]

    def _loss(self, stacked: bool, *images: torch.Tensor) -> torch.Tensor:
        """The sum of all tasks' losses, computed in one batch."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._low):
            logits = forward_tasks(self.models, images, stacked=stacked)
            losses = [m.head.losses(own, self._labels)["loss"] for m, own in zip(self.models, logits, strict=True)]
        return torch.stack(losses).sum()

    def saved_bytes(self) -> int:
        """Bytes that a packed step keeps for its backward pass, with the backbone's cast copies."""
        vit = self.models[0].backbone.vit
        own = [tensor for module in (*self.models, vit) for tensor in (*module.parameters(), *module.buffers())]
        return saved_bytes(lambda: self._loss(False, *self._images), own=own) + self.models[0].backbone.copied_bytes


def task_bytes(model: nn.Module) -> int:
    """Bytes of one task in training: parameters, gradients, AdamW's two moments and buffers."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters())
    return 4 * trained + sum(b.numel() * b.element_size() for b in model.buffers())


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of tasks."""
    device = torch.device(options.device)
    rows = []
    for count in options.tasks:
        tasks = Tasks(
            setting_of(options),
            count,
            batch_size=options.batch_size,
            precision=options.precision,
            memory=options.memory,
        )
        ways = [way for way in WAYS if way != "stacked" or options.memory == "speed"]
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        before = uncounted(device)
        for number in range(before + options.rounds):
            for way in ways:
                spent = seconds_of(functools.partial(tasks.step, way), device)
                if number >= before:
                    seconds[way].append(spent)
        images = count * options.batch_size
        row: dict[str, Any] = {"tasks": count, "bytes_of_one_task": task_bytes(tasks.models[0])}
        for way in ways:
            pairs = zip(seconds["alone"], seconds[way], strict=True)
            row[f"{way}_images_per_second"] = round(images / statistics.median(seconds[way]), 3)
            row[f"{way}_of_alone"] = round(statistics.median(a / b for a, b in pairs), 3)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a text table."""
    ways = [way for way in WAYS if f"{way}_of_alone" in rows[0]]
    header = ["tasks", *(f"{way}: img/s" for way in ways), *(f"{way} of alone" for way in ways[1:]), "MB a task"]
    cells = [
        [
            str(row["tasks"]),
            *(f"{row[f'{way}_images_per_second']:.2f}" for way in ways),
            *(f"{row[f'{way}_of_alone']:.2f}" for way in ways[1:]),
            f"{row['bytes_of_one_task'] / 1e6:.2f}",
        ]
        for row in rows
    ]
    return "\n".join(aligned(header, cells, left=0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when everything was measured, 2 when the command line has faults."""
    parser = vit_parser(__doc__)
    add = parser.add_argument
    add("--memory", default="speed", choices=MEMORY_MODES, help="memory mode of a step (default: %(default)s)")
    add("--tasks", type=numbers, default=[1, 2, 4, 8], metavar="N,...", help="numbers of tasks (default: 1,2,4,8)")
    add("--batch-size", type=int, default=8, help="images of each task (default: %(default)s)")
    return run_benchmark(parser, arguments, faults_of=batch_size_faults, measure=measure, table=table)


if __name__ == "__main__":
    sys.exit(main())
