"""What the benchmarks of a ViT's steps share: their arguments, the timing and the result file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from hst import plain
from hst.backbone import check_supported
from hst.config import HSN_PRESETS
from hst.vit.weights import build_vit
from pipeline.benchmarks.methods import Setting
from pipeline.cluster.machine import machine
from pipeline.console.command_line import local_path

NUM_CLASSES = 100
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def vit_parser(description: str | None, *, rounds: bool = True) -> argparse.ArgumentParser:
    """A parser with the common arguments, and with ``--rounds`` unless the benchmark has none."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", default="vit_base_patch16_224", help="timm name; weights are random (default: %(default)s)")
    add("--hsn", default="HSN_B", choices=sorted(HSN_PRESETS), help="preset of the side network (default: %(default)s)")
    add("--image-size", type=int, default=224, help="pixels (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--precision", choices=sorted(PRECISIONS), help="default: float32 on a CPU, bfloat16 on CUDA")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    if rounds:
        add("--rounds", type=int, default=7, help="rounds to measure (default: %(default)s)")
    add("--output", type=local_path, required=True, help="the JSON file of results")
    return parser


def numbers(text: str) -> list[int]:
    """Parse a list of positive whole numbers, such as ``1,4,19``."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from 1 on, as in 1,4,19")
    return [int(word) for word in words]


def run_benchmark(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    faults_of: Callable[[argparse.Namespace], list[str]],
    measure: Callable[[argparse.Namespace], list[dict[str, Any]]],
    table: Callable[[list[dict[str, Any]]], str],
    packages_of: Callable[[argparse.Namespace], list[str]] = lambda _: [],
) -> int:
    """Run a benchmark from its command line to its result file and table.

    Args:
        parser: from `vit_parser`, with the benchmark's own arguments added.
        arguments: the command line; None means the process's own.
        faults_of: returns what is wrong with the benchmark's own options.
        measure: returns the rows for the options.
        table: formats the rows as text.
        packages_of: returns the packages whose versions are recorded beside torch's and timm's.

    Returns:
        0 when everything was measured, 2 when it cannot be measured; the reason is printed.
    """
    options = parser.parse_args(arguments)
    if faults := [*faults_of(options), *_common_faults(options)]:
        parser.error("; ".join(faults))
    options.precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
    torch.set_num_threads(options.threads)
    try:
        rows = measure(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    _write_report(options, rows, packages_of(options))
    return 0


def _common_faults(options: argparse.Namespace) -> list[str]:
    faults = []
    if options.device not in ("cpu", "cuda"):
        faults.append(f"--device {options.device}: expected cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        faults.append("--device cuda: there is none here")
    for name in ("rounds", "threads"):
        if getattr(options, name, 1) < 1:
            faults.append(f"--{name} {getattr(options, name)}: expected at least 1")
    try:
        check_supported(options.backbone)
        with torch.device("meta"):
            vit: Any = build_vit(options.backbone)
        patch = vit.patch_embed.patch_size[0]
    except ValueError as error:
        faults.append(f"--backbone: {error}")
    else:
        if not timm.is_model(options.backbone.partition(".")[0]):
            faults.append(f"--backbone {options.backbone}: expected one of timm's models, which all methods can use")
        if options.image_size < patch or options.image_size % patch:
            faults.append(f"--image-size {options.image_size}: expected a multiple of the ViT's patch, {patch}")
    for name, path in vars(options).items():
        if isinstance(path, Path) and (reason := _unwritable(path)):
            faults.append(f"--{name} {path}: cannot be written: {reason}")
    return faults


def _unwritable(path: Path) -> str | None:
    """Why the file cannot be written, or None; found out before anything is measured."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def batch_size_faults(options: argparse.Namespace) -> list[str]:
    """The fault of a batch size below 2, since batch norm needs two images."""
    return [f"--batch-size {options.batch_size}: expected at least 2"] if options.batch_size < 2 else []


def setting_of(options: argparse.Namespace) -> Setting:
    """The setting that the methods of `pipeline.benchmarks.methods` take."""
    return Setting(
        backbone=options.backbone,
        image_size=options.image_size,
        num_classes=NUM_CLASSES,
        device=torch.device(options.device),
        hsn=options.hsn,
    )


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the process's CPU time on a CPU; on CUDA wall-clock time until the device is done."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _write_report(options: argparse.Namespace, rows: Sequence[dict[str, Any]], packages: Sequence[str]) -> None:
    """Write the machine, the versions, the options without file paths, and the rows."""
    told = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    told["plain"] = plain.is_on()
    if options.device == "cuda":
        told["device"] = torch.cuda.get_device_name()
    report = {**machine("torch", "timm", *packages), **told, "rows": list(rows)}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
