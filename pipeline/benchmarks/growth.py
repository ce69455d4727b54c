"""How a train step grows with the images of a batch, the side of an image, the tasks of a pack and the registers.

    python -m pipeline.benchmarks.growth --backbone vit_tiny_patch16_224 --device cpu|cuda --output FILE.json \\
        --picture FILE.png

Each axis is varied alone, from one point: a batch of 8, --image-size, one task and the preset's registers. Image sides
are measured with HSN-L on batches of 2, whatever --image-size and --hsn say. Time is the median over the rounds; memory
is what the step keeps for its backward pass. Large images take longest; `--at-most "image side=384"` is a quick look.
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

from pipeline.benchmarks.packing import Tasks
from pipeline.benchmarks.steps import uncounted
from pipeline.benchmarks.vit_command import run_benchmark, seconds_of, setting_of, vit_parser
from pipeline.console.command_line import local_path
from pipeline.console.progress import counted
from pipeline.console.text_table import aligned
from pipeline.reports.growth_picture import growth_picture

BATCH_SIZE = 8
AXES: dict[str, tuple[int, ...]] = {
    "images a batch": (2, 4, 8, 16, 32),
    "image side": (224, 384, 512, 768, 1024),
    "tasks": (1, 2, 4, 8),
    "registers": (0, 1, 2, 4, 8, 16, 32),
}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each point of each axis."""
    setting = setting_of(options)
    rows = []
    at_most = dict(options.at_most)
    for axis, values in AXES.items():
        for value in [value for value in values if value <= at_most.get(axis, value)]:
            here, batch_size, tasks, registers = setting, BATCH_SIZE, 1, None
            if axis == "images a batch":
                batch_size = value
            elif axis == "image side":
                here, batch_size = dataclasses.replace(setting, image_size=value, hsn="HSN_L"), 2
            elif axis == "tasks":
                tasks = value
            else:
                registers = value
            subject = Tasks(here, tasks, batch_size=batch_size, precision=options.precision, num_registers=registers)
            step = functools.partial(subject.step, "packed")
            for _ in range(uncounted(here.device)):
                step()
            seconds = statistics.median(seconds_of(step, here.device) for _ in range(options.rounds))
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "images": batch_size * tasks,
                    "seconds_per_image": round(seconds / (batch_size * tasks), 5),
                    "saved_bytes_per_image": subject.saved_bytes() // (batch_size * tasks),
                }
            )
            print(f"{axis} {value}: {rows[-1]['seconds_per_image']:.4f} s an image", file=sys.stderr, flush=True)
    return rows


def _drawn(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the rows and draw their picture."""
    rows = measure(options)
    on = f"{counted(options.threads, 'core')} of a CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    title = (
        f"A train step of {options.backbone} at {options.image_size} px, {BATCH_SIZE} images a task, "
        f"{options.precision}, {on} (image side: HSN-L, 2 images)"
    )
    growth_picture(rows, options.picture, title=title)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a text table."""
    cells = [
        [
            row["axis"],
            str(row["value"]),
            f"{1e3 * row['seconds_per_image']:.1f}",
            f"{row['saved_bytes_per_image'] / 2**20:.1f}",
        ]
        for row in rows
    ]
    return "\n".join(aligned(["axis", "value", "ms an image", "saved MiB an image"], cells, left=1))


def _limit(text: str) -> tuple[str, int]:
    axis, _, most = text.rpartition("=")
    if axis not in AXES or not most.isdecimal():
        axes = ", ".join(f"{name} (from {values[0]} on)" for name, values in AXES.items())
        raise argparse.ArgumentTypeError(f"{text!r}: expected as in 'image side=512'; axes: {axes}")
    if int(most) < AXES[axis][0]:
        raise argparse.ArgumentTypeError(f"{text!r}: {axis} begins at {AXES[axis][0]}")
    return axis, int(most)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when everything was measured, 2 when the command line has faults."""
    parser = vit_parser(__doc__)
    parser.add_argument("--picture", type=local_path, required=True, help="the PNG file")
    parser.add_argument(
        "--at-most",
        type=_limit,
        action="append",
        default=[],
        metavar="AXIS=N",
        help=f"end an axis early; axes: {', '.join(AXES)}",
    )
    return run_benchmark(parser, arguments, faults_of=lambda _: [], measure=_drawn, table=table)


if __name__ == "__main__":
    sys.exit(main())
