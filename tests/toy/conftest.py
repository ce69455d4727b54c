"""The toy seams, registered: a head, a method, an annotation, a metric and a kind that no package knows."""

from pathlib import Path
from typing import Any

import pytest

from hst.heads import HEADS
from hst.methods import METHODS
from pipeline.data import annotations
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.kinds import KINDS
from pipeline.tasks import kinds
from pipeline.tasks.catalogue import Task
from pipeline.tasks.kinds import Measure
from pipeline.tasks.recipe import Recipe
from tests.toy.regression_data import write_bars

MAE = Measure(name="mae", unit="widths", higher_is_better=False)
RECIPE = Recipe(image_size=64, epochs=3, batch_size=6, learning_rate=1e-2, precision="float32")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each."""
    monkeypatch.setitem(HEADS, "number", "tests.toy.number_head:NumberHead")
    monkeypatch.setitem(METHODS, "last_patches", "tests.toy.last_patches:LastPatches")
    monkeypatch.setitem(KINDS, "regression", "tests.toy.regression:Regression")
    monkeypatch.setitem(annotations.ANNOTATIONS, "number", "tests.toy.number:Number")
    monkeypatch.setitem(kinds.MEASURES, "regression", (MAE,))
    monkeypatch.setitem(kinds.ANNOTATIONS, "regression", "number")


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw data, below its root."""
    return write_bars(tmp_path_factory.mktemp("toy-data") / "toy-bar").parent


@pytest.fixture
def task(registered: None) -> Task:
    """As a task file would have it."""
    return Task(
        name="toy-bar",
        short_name="toy-bar",
        folder="toy-bar",
        group="own",
        kind="regression",
        recipe=RECIPE,
        origin="toy.toml:1",
    )


@pytest.fixture
def manifests(task: Task, bars: Path, tmp_path: Path) -> dict[str, Manifest]:
    return prepare_task(task, str(bars), str(tmp_path / "shards"))


@pytest.fixture
def spec(manifests: dict[str, Manifest], task: Task) -> Any:
    """A `RunSpec` of the task: ``spec(method, protocol, **recipe)``."""
    import dataclasses

    from hst.backbone import load_backbone
    from pipeline.training.unit import RunSpec

    backbone = load_backbone("hst_vit_micro_patch8_64")

    def made(method: dict[str, Any], protocol: str = "selection", **recipe: Any) -> RunSpec:
        train, evaluated = ("train", "val") if protocol == "selection" else ("trainval", "test")
        changed = dataclasses.replace(task.recipe, method=method["name"], **recipe)
        return RunSpec(
            task=task.name,
            protocol=protocol,
            seed=0,
            kind=task.kind,
            recipe=dataclasses.asdict(changed),
            method=method,
            head={"kind": "number"},
            train=manifests[train].uri,
            evaluate=manifests[evaluated].uri,
            data_sha256={split: manifests[split].sha256 for split in (train, evaluated)},
            backbone_name=backbone.name,
            backbone_identity=backbone.identity,
        )

    return made
