"""Small sources of images in which every pixel says which sample it is, and a task that names them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.data.errors import DataError
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.data.sources import open_source
from pipeline.data.verify import verify_split
from pipeline.tasks.catalogue import Task

NUM_CLASSES = 3
LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}


def image_bytes(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), colour).save(file, kind)
    return file.getvalue()


def refused(raw: Path, task: Task) -> str:
    """The error with which a source is refused."""
    with pytest.raises(DataError) as error:
        open_source(str(raw), task)
    return str(error.value)


def own_task(**changes: Any) -> Task:
    """A task as a user's file defines it."""
    fields = {"name": "own-x", "short_name": "own-x", "folder": "own-x", "group": "own", "origin": "own.toml:1"}
    return Task(**(fields | changes))


def make_photos(root: Path, **counts: int) -> Path:
    """Makes empty photos in a folder per class, half of them one folder deeper."""
    for name, count in counts.items():
        (root / name / "deep").mkdir(parents=True)
        for i in range(count):
            (root / name / ("deep" if i % 2 else "") / f"{i}.jpg").write_bytes(b"")
    return root


def faults_of(manifest: Manifest) -> list[str]:
    """The faults that reading every byte finds."""
    return [fault for report in verify_split(manifest) for fault in report.faults]


@pytest.fixture
def task() -> Task:
    return Task(name="vtab-tiny", short_name="tiny", folder="tiny", group="natural", num_classes=NUM_CLASSES)


@pytest.fixture
def make_lists(tmp_path: Path) -> Callable[..., Path]:
    """Writes the VTAB-1k layout under tmp_path/raw; image i of a split has colour (i % 256, i // 256, split)."""

    def make(train: int = 12, val: int = 6, test: int = 9) -> Path:
        folder = tmp_path / "raw" / "tiny"
        (folder / "images").mkdir(parents=True)
        for number, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
            lines = []
            for i in range(count):
                (folder / f"images/{split}{i}.png").write_bytes(image_bytes((i % 256, i // 256, number)))
                lines.append(f"images/{split}{i}.png {i % NUM_CLASSES}\n")
            (folder / LISTS[split]).write_text("".join(lines))
        (folder / "train800val200.txt").write_text(
            (folder / LISTS["train"]).read_text() + (folder / LISTS["val"]).read_text()
        )
        return folder.parent

    return make


@pytest.fixture
def make_shards(tmp_path: Path, task: Task, make_lists: Callable[..., Path]) -> Callable[..., dict[str, Manifest]]:
    """Writes the same data as shards under tmp_path/shards."""

    def make(samples_per_shard: int = 4, **sizes: int) -> dict[str, Manifest]:
        raw = make_lists(**sizes)
        return prepare_task(task, str(raw), str(tmp_path / "shards"), samples_per_shard=samples_per_shard)

    return make
