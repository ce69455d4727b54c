"""A task small enough to train in a second: coloured squares in four classes, on the project's smallest ViT."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hst.backbone import Backbone, load_backbone
from hst.config import HSNConfig
from hst.model import hst_spec
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.tasks.catalogue import Task
from pipeline.tasks.recipe import Recipe
from pipeline.training.unit import RunSpec

TINY_BACKBONE = "hst_vit_micro_patch8_64"
SIZES = {"train800": 23, "val200": 9, "test": 13}
TINY_HSN = HSNConfig(widths=(8, 8, 16, 16), num_heads=(2, 2, 2, 2))
TINY_RECIPE = Recipe(
    image_size=32, epochs=3, batch_size=8, learning_rate=5e-3, drop_path=0.2, precision="float64", label_smoothing=0.1
)
TINY_TASK = Task(name="demo-tiny", short_name="tiny", folder="tiny", group="demo", num_classes=4)


def write_tiny_data(root: Path) -> Path:
    folder = root / "tiny" / "images"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for split, count in SIZES.items():
        lines = []
        for i in range(count):
            label = i % 4
            pixels = draws.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            pixels[8 * label : 8 * label + 8, 8:24] += 150
            Image.fromarray(pixels).save(folder / f"{split}-{i}.png")
            lines.append(f"images/{split}-{i}.png {label}\n")
        (root / "tiny" / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the tiny task in the layout of the VTAB-1k zip; returns the data root."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny-data"))


@pytest.fixture(scope="session")
def tiny_manifests(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    return prepare_task(TINY_TASK, str(tiny_data), str(tmp_path_factory.mktemp("tiny-shards")))


@pytest.fixture
def tiny_backbone() -> Backbone:
    return load_backbone(TINY_BACKBONE, "random")


@pytest.fixture
def tiny_spec(tiny_manifests: dict[str, Manifest], tiny_backbone: Backbone) -> Callable[..., RunSpec]:
    """Makes specs of the tiny task; keywords change recipe fields."""

    def spec(protocol: str = "selection", seed: int = 0, **recipe: object) -> RunSpec:
        train, evaluated = ("train", "val") if protocol == "selection" else ("trainval", "test")
        changed = dataclasses.replace(TINY_RECIPE, **recipe)  # type: ignore[arg-type]
        return RunSpec(
            task=TINY_TASK.name,
            protocol=protocol,
            seed=seed,
            kind="classification",
            recipe=dataclasses.asdict(changed),
            method=hst_spec(TINY_HSN),
            head={"kind": "classification", "input": changed.head_input, "num_classes": 4},
            train=tiny_manifests[train].uri,
            evaluate=tiny_manifests[evaluated].uri,
            data_sha256={s: tiny_manifests[s].sha256 for s in (train, evaluated)},
            backbone_name=TINY_BACKBONE,
            backbone_identity=tiny_backbone.identity,
        )

    torch.set_num_threads(1)
    return spec


@pytest.fixture
def untouched_global_generators() -> Iterator[None]:
    """Fails the test if it changes the state of a global generator."""

    def states() -> tuple[object, str, list[int]]:
        return random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()

    before = states()
    yield
    assert states() == before
