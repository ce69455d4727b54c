"""Train steps of several tasks on one frozen ViT: one after another, and in one batch.

    python -m pipeline.benchmarks.packing --backbone vit_base_patch16_224 --tasks 1,2,4,8,19 --batch-size 32 \
        --device cpu|cuda --output FILE.json

A round is a step of every task, made both ways in turns in one process; numbers are medians over the rounds. What one
more task takes in memory is counted: its parameters and buffers, their gradients and AdamW's two moments.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hst.backbone import Backbone
from hst.config import HSN_PRESETS, MEMORY_MODES
from hst.model import TaskModel, build_task_model
from hst.multitask import forward_tasks
from hst.weights import build_vit
from pipeline.benchmarks.vit_command import NUM_CLASSES, parse, seconds_of, vit_parser, write_report
from pipeline.reports.table import aligned

WAYS = ("alone", "packed", "stacked")
"""A model after the other; one pass through the ViT, then a side network after the other; these, too, together."""


class Tasks:
    """So many task models on one ViT, each with its optimiser and a batch of random pixels."""

    def __init__(self, options: argparse.Namespace, count: int) -> None:
        self._device = torch.device(options.device)
        self._low = options.precision == "bfloat16"
        backbone = Backbone(options.backbone, build_vit(options.backbone), "").to(self._device)
        self._models: list[TaskModel] = []
        for i in range(count):
            hsn = HSN_PRESETS[options.hsn]
            model = build_task_model(backbone, hsn, num_classes=NUM_CLASSES, task=f"task-{i}").to(self._device)
            model.memory = options.memory
            self._models.append(model.train())
        self._optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in self._models]
        draws = torch.Generator().manual_seed(0)
        shape = (options.batch_size, 3, options.image_size, options.image_size)
        self._images = [torch.randn(shape, generator=draws).to(self._device) for _ in self._models]
        self._labels = torch.randint(NUM_CLASSES, shape[:1], generator=draws).to(self._device)

    def step(self, way: str) -> None:
        """Of all tasks."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        if way == "alone":
            for model, images in zip(self._models, self._images, strict=True):
                with self._autocast():
                    loss = model(images, self._labels)["loss"]
                loss.backward()
        else:
            with self._autocast():
                logits = forward_tasks(self._models, self._images, stacked=way == "stacked")
                losses = [m.head.losses(own, self._labels)["loss"] for m, own in zip(self._models, logits, strict=True)]
            torch.stack(losses).sum().backward()
        for optimizer in self._optimizers:
            optimizer.step()

    def bytes_of_one(self) -> int:
        """Of a task in training, beside the ViT: what it trains four times, with gradients and AdamW's moments."""
        return task_bytes(self._models[0])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._low)


def task_bytes(model: nn.Module) -> int:
    """Bytes of a task in training: parameters, gradients, two moments of AdamW, buffers."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters())
    return 4 * trained + sum(b.numel() * b.element_size() for b in model.buffers())


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of tasks."""
    device = torch.device(options.device)
    rows = []
    for count in options.tasks:
        tasks = Tasks(options, count)
        ways = [way for way in WAYS if way != "stacked" or options.memory == "speed"]
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way in ways:
                spent = seconds_of(functools.partial(tasks.step, way), device)
                if number:  # the first one is for what comes once
                    seconds[way].append(spent)
        images = count * options.batch_size
        row: dict[str, Any] = {"tasks": count, "bytes_of_one_task": tasks.bytes_of_one()}
        for way in ways:
            pairs = zip(seconds["alone"], seconds[way], strict=True)
            row[f"{way}_images_per_second"] = round(images / statistics.median(seconds[way]), 3)
            row[f"{way}_of_alone"] = round(statistics.median(a / b for a, b in pairs), 3)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people."""
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


def _counts(text: str) -> list[int]:
    counts = [int(word) for word in text.split(",")]
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of tasks, as in 1,4,19")
    return counts


def _faults(options: argparse.Namespace) -> list[str]:
    return [f"--batch-size {options.batch_size}: expected at least 2"] if options.batch_size < 2 else []


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured; 2: the command line has faults."""
    parser = vit_parser(__doc__)
    add = parser.add_argument
    add("--memory", default="speed", choices=MEMORY_MODES, help="what a step keeps (default: %(default)s)")
    add("--tasks", type=_counts, default=[1, 2, 4, 8], metavar="N,...", help="how many (default: 1,2,4,8)")
    add("--batch-size", type=int, default=8, help="images of each task (default: %(default)s)")
    options = parse(parser, arguments, _faults)
    try:
        rows = measure(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_report(options, rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
