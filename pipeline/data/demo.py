"""Demo data: four small tasks that need no download, in the layout of the VTAB-1k zip.

``digits`` has scikit-learn's real handwritten digits (UCI, 8x8 pixels, here enlarged). The others are drawn:
``shape_x`` and ``shape_orientation`` after dSprites (x position and orientation of a white shape), ``shape_count``
after the counting task of CLEVR. A generator keyed by (seed, task, split, number) draws each of these images, so the
same seed gives the same pixels.
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
"""Images per split: enough to learn from, and few enough to train the four tasks twice in minutes on two cores."""

_OVERSAMPLING = 4  # shapes are drawn this many times larger and averaged down, for smooth edges
_FORMAT_VERSION = 1
_MARKER = "demo.json"  # records the settings that the folder was made with
_NUM_LEVELS = 32  # levels of position and orientation; four neighbouring levels make one of the eight classes


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """A task whose data the project makes itself."""

    class_names: tuple[str, ...]
    samples: Callable[[str, int, int], Iterator[tuple[Image.Image, int]]]
    """(split, number of images, seed) -> images with their labels."""


def make_demo_data(root: str | Path, *, seed: int = 0) -> list[Path]:
    """Makes every demo task under ``root``, in one folder each; existing folders stay unchanged.

    A folder appears only when it is complete.

    Returns:
        The folders of the tasks.

    Raises:
        ValueError: A task's folder exists, but holds something else than this function would make.
    """
    Path(root).mkdir(parents=True, exist_ok=True)
    return [make_demo_task(Path(root) / name, task, seed=seed) for name, task in DEMO_TASKS.items()]


def make_demo_task(folder: Path, task: DemoTask, *, seed: int = 0) -> Path:
    """Makes one task's folder, unless it exists (see `make_demo_data`)."""
    made_from = {"format_version": _FORMAT_VERSION, "seed": seed, "image_size": IMAGE_SIZE, "splits": SPLITS}
    if folder.exists():
        _check_same(folder, made_from)
        return folder
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        lists = {split: _write_split(partial, task, split, seed) for split in SPLITS}
        for split, lines in lists.items():
            (partial / LISTS[split]).write_text("".join(lines))
        (partial / TRAINVAL_LIST).write_text("".join(lists["train"] + lists["val"]))
        (partial / CLASS_NAMES).write_text("".join(f"{name}\n" for name in task.class_names))
        (partial / _MARKER).write_text(json.dumps(made_from, indent=2) + "\n")
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():  # another process was faster
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
    """Writes a split's images; returns the lines of its list, ``<relative path> <label>``."""
    images = Path("images") / ("test" if split == "test" else "train800val200")
    (root / images).mkdir(parents=True, exist_ok=True)
    first = SPLITS["train"] if split == "val" else 0  # val continues the numbers of train, as in the zip
    lines = []
    for number, (image, label) in enumerate(task.samples(split, SPLITS[split], seed), start=first):
        path = images / f"{number:06d}.png"
        image.save(root / path)
        lines.append(f"{path.as_posix()} {label}\n")
    return lines


# Real digits.


def _digits(split: str, num_images: int, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """scikit-learn's digits; the splits are disjoint parts of one permutation."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    order = np.random.default_rng(derive_seed(seed, "demo", "digits")).permutation(len(digits.target))
    names = list(SPLITS)
    first = sum(SPLITS[name] for name in names[: names.index(split)])
    for index in order[first : first + num_images]:
        grey = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
        image = Image.fromarray(grey).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        yield image, int(digits.target[index])


# Drawn shapes: corners, shape (n, 2), around the origin within a circle of radius 1; x points right and y down.


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
    """Draws a shape; centre and radius are in pixels of the final image, the angle is in radians, clockwise."""
    cos, sin = math.cos(angle), math.sin(angle)
    points = corners @ np.array([(cos, sin), (-sin, cos)]) * radius + np.array(centre)
    canvas.polygon([(float(x) * _OVERSAMPLING, float(y) * _OVERSAMPLING) for x, y in points], fill=colour)


def _canvas(background: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    return Image.new("RGB", (IMAGE_SIZE * _OVERSAMPLING,) * 2, background)


def _balanced(name: str, split: str, num_images: int, seed: int, levels: int) -> list[tuple[int, np.random.Generator]]:
    """A level and a generator for each image; the counts of any two levels differ by at most one."""
    shuffled = np.random.default_rng(derive_seed(seed, "demo", name, split)).permutation(num_images) % levels
    return [
        (int(level), np.random.default_rng(derive_seed(seed, "demo", name, split, number)))
        for number, level in enumerate(shuffled)
    ]


def _shape_x(split: str, num_images: int, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """A square, ellipse or heart of random size, height and orientation; the label is its position from the left."""
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
    """A heart, drop or arrow (none has rotational symmetry); the label is the angle of its tip from the top."""
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
    """One to six coloured shapes that do not touch; the label is their number minus one."""
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
"""Folder name -> task; the catalogue calls them ``demo-<folder>``."""
