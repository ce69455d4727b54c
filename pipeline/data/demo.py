"""Demo data: four small tasks that need no download, in the layout of the VTAB-1k zip.

``digits`` is scikit-learn's real handwritten digits (UCI, 8x8 pixels, here enlarged). The others are drawn:
``shape_x`` and ``shape_orientation`` after dSprites (x position and orientation of a white shape), ``shape_count``
after CLEVR's counting. Every image is drawn from a generator keyed by (seed, task, split, number): the same seed
gives the same pixels.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hst.randomness import derive_seed
from pipeline.data.raw.text_lists import CLASS_NAMES
from pipeline.data.raw.vtab_lists import LISTS, TRAINVAL_LIST

IMAGE_SIZE = 64
SPLITS = {"train": 200, "val": 80, "test": 200}
"""Images a split: two runs of four tasks on two cores in minutes, and enough to learn from."""

_OVERSAMPLING = 4  # shapes are drawn this many times larger and averaged down, for smooth edges
_FORMAT_VERSION = 1
_MARKER = "demo.json"  # says what drew the folder
_NUM_LEVELS = 32  # of position and orientation; four neighbours make one of the eight classes


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """A task that the project can make by itself."""

    class_names: tuple[str, ...]
    samples: Callable[[str, int, int], Iterator[tuple[Image.Image, int]]]
    """(split, number of images, seed) -> images with their labels."""


def make_demo_data(root: str | Path, *, seed: int = 0) -> list[Path]:
    """Make every demo task under ``root``, one folder each; what is already there is left as it is.

    A folder appears whole or not at all.

    Returns:
        the tasks' folders.

    Raises:
        ValueError: a folder of a task's name is there, but holds something else than this function would make.
    """
    Path(root).mkdir(parents=True, exist_ok=True)
    return [make_demo_task(Path(root) / name, task, seed=seed) for name, task in DEMO_TASKS.items()]


def make_demo_task(folder: Path, task: DemoTask, *, seed: int = 0) -> Path:
    """Make one task's folder, unless it is there (see `make_demo_data`)."""
    made_from = {"format_version": _FORMAT_VERSION, "seed": seed, "image_size": IMAGE_SIZE, "splits": SPLITS}
    if folder.exists():
        _check_same(folder, made_from)
        return folder
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o755)  # mkdtemp's folders are their owner's alone
        lists = {split: _write_split(partial, task, split, seed) for split in SPLITS}
        for split, lines in lists.items():
            (partial / LISTS[split]).write_text("".join(lines))
        (partial / TRAINVAL_LIST).write_text("".join(lists["train"] + lists["val"]))
        (partial / CLASS_NAMES).write_text("".join(f"{name}\n" for name in task.class_names))
        (partial / _MARKER).write_text(json.dumps(made_from, indent=2) + "\n")
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():  # another process was quicker
            _check_same(folder, made_from)
            return folder
        raise
    return folder


def _check_same(folder: Path, made_from: dict[str, object]) -> None:
    marker = folder / _MARKER
    found = json.loads(marker.read_text()) if marker.is_file() else "something else"
    if found != made_from:
        raise ValueError(
            f"{folder} holds {found}, expected demo data made from {made_from}: remove it, or name another folder"
        )


def _write_split(root: Path, task: DemoTask, split: str, seed: int) -> list[str]:
    """Write a split's images; return its list's lines, ``<relative path> <label>``."""
    images = Path("images") / ("test" if split == "test" else "train800val200")
    (root / images).mkdir(parents=True, exist_ok=True)
    first = SPLITS["train"] if split == "val" else 0  # train and val number through, as in the zip
    lines = []
    for number, (image, label) in enumerate(task.samples(split, SPLITS[split], seed), start=first):
        path = images / f"{number:06d}.png"
        image.save(root / path)
        lines.append(f"{path.as_posix()} {label}\n")
    return lines


# Real digits.


def _digits(split: str, num_images: int, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """scikit-learn's digits; the splits are disjoint parts of one permutation."""
    from sklearn.datasets import load_digits  # a second to import

    digits = load_digits()
    order = np.random.default_rng(derive_seed(seed, "demo", "digits")).permutation(len(digits.target))
    names = list(SPLITS)
    first = sum(SPLITS[name] for name in names[: names.index(split)])
    for index in order[first : first + num_images]:
        grey = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
        image = Image.fromarray(grey).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        yield image, int(digits.target[index])


# Drawn shapes: corners (n, 2) about the origin, x to the right and y down, within a circle of radius 1.


def _curve(x: Callable[[np.ndarray], np.ndarray], y: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    corners = np.stack([x(angle), y(angle)], axis=1)
    corners = corners - (corners.max(axis=0) + corners.min(axis=0)) / 2
    return np.asarray(corners / np.linalg.norm(corners, axis=1).max())


_SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * math.sqrt(0.5)
_ELLIPSE = _curve(np.cos, lambda t: 0.6 * np.sin(t))
_CIRCLE = _curve(np.cos, np.sin)
_TRIANGLE = np.array([(math.cos(turn), math.sin(turn)) for turn in (0, 2 * math.pi / 3, 4 * math.pi / 3)])
_HEART = _curve(
    lambda t: 16 * np.sin(t) ** 3,
    lambda t: -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)),
)
_DROP = _curve(lambda t: np.sin(t) * np.sin(t / 2) ** 2, lambda t: -1.4 * np.cos(t))
_ARROW = np.array([(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]) / 1.05


def _draw(
    canvas: ImageDraw.ImageDraw,
    corners: np.ndarray,
    *,
    centre: tuple[float, float],
    radius: float,
    angle: float = 0.0,
    colour: tuple[int, int, int] = (255, 255, 255),
) -> None:
    """Draw a shape; centre and radius in pixels of the final image, angle in radians, clockwise."""
    cos, sin = math.cos(angle), math.sin(angle)
    points = corners @ np.array([(cos, sin), (-sin, cos)]) * radius + np.array(centre)
    canvas.polygon([(float(x) * _OVERSAMPLING, float(y) * _OVERSAMPLING) for x, y in points], fill=colour)


def _canvas(background: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    return Image.new("RGB", (IMAGE_SIZE * _OVERSAMPLING,) * 2, background)


def _balanced(name: str, split: str, num_images: int, seed: int, levels: int) -> list[tuple[int, np.random.Generator]]:
    """A level and a generator for each image; every level as often as every other, give or take one."""
    shuffled = np.random.default_rng(derive_seed(seed, "demo", name, split)).permutation(num_images) % levels
    return [
        (int(level), np.random.default_rng(derive_seed(seed, "demo", name, split, number)))
        for number, level in enumerate(shuffled)
    ]


def _shape_x(split: str, num_images: int, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """A square, an ellipse or a heart of any size, height and turn; the label is where it is from left to right."""
    for level, random in _balanced("shape_x", split, num_images, seed, _NUM_LEVELS):
        shape = (_SQUARE, _ELLIPSE, _HEART)[random.integers(3)]
        x = 10 + 44 * (level + 0.5) / _NUM_LEVELS
        image = _canvas()
        _draw(
            ImageDraw.Draw(image),
            shape,
            centre=(x, random.uniform(10, 54)),
            radius=random.uniform(5, 10),
            angle=random.uniform(0, 2 * math.pi),
        )
        yield image.reduce(_OVERSAMPLING), level // (_NUM_LEVELS // 8)


def _shape_orientation(split: str, num_images: int, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """A heart, a drop or an arrow, none the same when turned; the label is how far its tip is turned from above."""
    for level, random in _balanced("shape_orientation", split, num_images, seed, _NUM_LEVELS):
        shape = (-_HEART, _DROP, _ARROW @ np.array([(0, -1), (1, 0)]))[random.integers(3)]
        image = _canvas()
        _draw(
            ImageDraw.Draw(image),
            shape,
            centre=(random.uniform(24, 40), random.uniform(24, 40)),
            radius=random.uniform(14, 22),
            angle=2 * math.pi * level / _NUM_LEVELS,
        )
        yield image.reduce(_OVERSAMPLING), level // (_NUM_LEVELS // 8)


_COLOURS = ((230, 70, 60), (70, 160, 240), (90, 200, 90), (245, 200, 60), (190, 110, 220), (240, 240, 240))


def _shape_count(split: str, num_images: int, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """One to six coloured shapes that do not touch; the label is how many, less one."""
    for level, random in _balanced("shape_count", split, num_images, seed, 6):
        grey = int(random.integers(20, 90))
        image = _canvas((grey, grey, grey))
        placed: list[tuple[float, float, float]] = []
        while len(placed) <= level:
            x, y, radius = random.uniform(8, 56), random.uniform(8, 56), random.uniform(4.5, 7.5)
            if any(math.hypot(x - other_x, y - other_y) < radius + other + 1 for other_x, other_y, other in placed):
                continue
            placed.append((x, y, radius))
            _draw(
                ImageDraw.Draw(image),
                (_SQUARE, _CIRCLE, _TRIANGLE)[random.integers(3)],
                centre=(x, y),
                radius=radius,
                angle=random.uniform(0, 2 * math.pi),
                colour=_COLOURS[random.integers(len(_COLOURS))],
            )
        yield image.reduce(_OVERSAMPLING), level


DEMO_TASKS: dict[str, DemoTask] = {
    "digits": DemoTask(class_names=tuple(str(digit) for digit in range(10)), samples=_digits),
    "shape_x": DemoTask(class_names=tuple(f"x{position}" for position in range(8)), samples=_shape_x),
    "shape_orientation": DemoTask(
        class_names=tuple(f"{45 * turn} to {45 * (turn + 1)} degrees" for turn in range(8)),
        samples=_shape_orientation,
    ),
    "shape_count": DemoTask(
        class_names=("1 shape", *(f"{count} shapes" for count in range(2, 7))), samples=_shape_count
    ),
}
"""Folder name -> task; the catalogue knows them as ``demo-<folder>``."""
