"""What the benchmarks of a ViT's steps have in common: their arguments, how seconds are counted, the result file."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hst.config import HSN_PRESETS
from pipeline.benchmarks.machine import machine
from pipeline.benchmarks.methods import Setting
from pipeline.command_line import local_path

NUM_CLASSES = 100
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def vit_parser(description: str | None, *, rounds: bool = True) -> argparse.ArgumentParser:
    """The arguments of all, and of most the number of rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", default="vit_base_patch16_224", help="timm name (default: %(default)s)")
    add("--hsn", default="HSN_B", choices=sorted(HSN_PRESETS), help="preset of the side network (default: %(default)s)")
    add("--image-size", type=int, default=224, help="pixels (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--precision", choices=sorted(PRECISIONS), help="default: float32 on a CPU, bfloat16 on CUDA")
    add("--threads", type=int, default=1, help="of a CPU (default: %(default)s)")
    if rounds:
        add("--rounds", type=int, default=7, help="that are measured (default: %(default)s)")
    add("--output", type=local_path, required=True, help="the JSON file of results")
    return parser


def parse(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    faults_of: Callable[[argparse.Namespace], list[str]],
) -> argparse.Namespace:
    """The options, with a precision; exits with status 2 where they, or ``faults_of`` them, have faults."""
    options = parser.parse_args(arguments)
    faults = faults_of(options)
    if options.device not in ("cpu", "cuda"):
        faults.append(f"--device {options.device}: expected cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        faults.append("--device cuda: there is none here")
    if getattr(options, "rounds", 1) < 1:
        faults.append(f"--rounds {options.rounds}: expected at least 1")
    if faults:
        parser.error("; ".join(faults))
    options.precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
    torch.set_num_threads(options.threads)
    return options


def setting_of(options: argparse.Namespace) -> Setting:
    """For the methods of `pipeline.benchmarks.methods`."""
    return Setting(
        backbone=options.backbone,
        image_size=options.image_size,
        num_classes=NUM_CLASSES,
        device=torch.device(options.device),
        hsn=options.hsn,
    )


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Of one call: the process's on a CPU, of the clock on CUDA, to the end of what was begun."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def write_report(options: argparse.Namespace, rows: Sequence[dict[str, Any]], *packages: str) -> None:
    """The result file: machine, versions, every option and the rows."""
    told = {name: value for name, value in vars(options).items() if name != "output"}
    if options.device == "cuda":
        told["device"] = torch.cuda.get_device_name()
    report = {**machine("torch", "timm", *packages), **told, "rows": list(rows)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
