"""Which decoder makes the recipe's pixels fastest: Pillow against other maintained ones, on the same files.

    python -m pipeline.benchmarks.decoders --images ~/vtab-1k/dtd/images --output FILE.json

Pillow defines the recipe's pixels: it decodes, then resizes once with antialiasing. Another decoder may replace it only
if every value is the same. Decoders that are not installed are left out; simplejpeg reads only JPEG. Everything runs on
one core, the decoders take turns, and a number is the median over the rounds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from hst.preprocessing import Preprocessing, as_pixels
from pipeline.cluster.machine import machine
from pipeline.console.command_line import local_path

Subject = Callable[[bytes, Preprocessing], np.ndarray]
"""Takes a file's bytes and the recipe, returns uint8 pixels (3, S, S)."""


def pillow(data: bytes, recipe: Preprocessing) -> np.ndarray:
    """What the project does: Pillow decodes and resizes."""
    return recipe.pixels(data).numpy()


def torchcodec_pillow(data: bytes, recipe: Preprocessing) -> np.ndarray:
    """TorchCodec, the successor of torchvision's decoders, decodes; Pillow resizes."""
    from torchcodec.decoders import decode_image

    return _resized(decode_image(data).permute(1, 2, 0).numpy(), recipe)


def pillow_torchvision(data: bytes, recipe: Preprocessing) -> np.ndarray:
    """Pillow decodes; torchvision resizes uint8 with antialiasing."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    size = [recipe.image_size, recipe.image_size]
    # A view of (H, W, 3): torchvision has a fast kernel for this layout.
    image = torch.from_numpy(np.array(recipe.decode(data))).permute(2, 0, 1)
    found = functional.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    return np.ascontiguousarray(found.numpy())


def simplejpeg_pillow(data: bytes, recipe: Preprocessing) -> np.ndarray:
    """simplejpeg decodes with libjpeg-turbo; Pillow resizes."""
    import simplejpeg

    return _resized(simplejpeg.decode_jpeg(data, "RGB"), recipe)


def opencv_pillow(data: bytes, recipe: Preprocessing) -> np.ndarray:
    """OpenCV decodes; Pillow resizes."""
    import cv2

    return _resized(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), recipe)


SUBJECTS: dict[str, tuple[Subject, str]] = {
    "pillow": (pillow, "PIL"),
    "torchcodec, then pillow's resize": (torchcodec_pillow, "torchcodec"),
    "simplejpeg, then pillow's resize": (simplejpeg_pillow, "simplejpeg"),
    "opencv, then pillow's resize": (opencv_pillow, "cv2"),
    "pillow, then torchvision's resize": (pillow_torchvision, "torchvision"),
}
"""Name of the subject -> its function and the module that it needs."""


def _resized(image: np.ndarray, recipe: Preprocessing) -> np.ndarray:
    return as_pixels(recipe.square(Image.fromarray(image))).numpy()


def measure(images: Sequence[bytes], recipe: Preprocessing, *, rounds: int) -> list[dict[str, Any]]:
    """One row per decoder: its rate on one core, its speed relative to Pillow's, and how its pixels differ."""
    torch.set_num_threads(1)
    expected = [pillow(image, recipe) for image in images]
    subjects = {name: work for name, (work, module) in SUBJECTS.items() if importlib.util.find_spec(module)}
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, work in subjects.items():
            started = time.perf_counter()
            for image in images:
                work(image, recipe)
            seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, work in subjects.items():
        differing = [np.abs(work(i, recipe).astype(int) - e) for i, e in zip(images, expected, strict=True)]
        against = [p / s for p, s in zip(seconds["pillow"], seconds[name], strict=True)]
        rows.append(
            {
                "subject": name,
                "images_per_second": round(len(images) / statistics.median(seconds[name]), 1),
                "of_pillow": round(statistics.median(against), 3),
                "differing_images": sum(bool(d.any()) for d in differing),
                "differing_values": round(float(np.mean([np.mean(d > 0) for d in differing])), 6),
                "largest_difference": int(max(d.max() for d in differing)),
            }
        )
    return rows


def read_images(folder: Path, limit: int) -> list[bytes]:
    """The first ``limit`` RGB JPEGs in a folder and below it, in order of their names.

    Other images are left out, because each decoder converts them to RGB in its own way.
    """
    found: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        if len(found) == limit:
            break
        if path.is_file():
            data = path.read_bytes()
            try:
                image = Image.open(io.BytesIO(data))
            except UnidentifiedImageError:
                continue
            if (image.format, image.mode) == ("JPEG", "RGB"):
                found.append(data)
    return found


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| decoder | images/s | of pillow | images that differ | by at most |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [
            row[name]
            for name in ("subject", "images_per_second", "of_pillow", "differing_images", "largest_difference")
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, write the file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder with JPEG files, or folders of them")
    parser.add_argument("--limit", type=int, default=300, help="how many files to use (default: 300)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--rounds", type=int, default=9, help="how often everything is measured (default: 9)")
    parser.add_argument("--output", type=local_path, required=True, help="the JSON file of results")
    options = parser.parse_args(arguments)
    images = read_images(options.images, options.limit)
    if not images:
        print(f"error: {options.images}: no RGB JPEG in it", file=sys.stderr)
        return 1
    packages = ["torch", "torchvision", "pillow"]
    packages += [name for name in ("torchcodec", "simplejpeg", "opencv-python-headless") if _installed(name)]
    report: dict[str, Any] = {**machine(*packages), "cores_used": 1, "images": len(images)}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    report["rows"] = measure(images, Preprocessing(image_size=options.image_size), rounds=options.rounds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
