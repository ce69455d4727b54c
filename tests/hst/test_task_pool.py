"""A mixed batch equals each task's own prediction, whatever is loaded or leaves meanwhile."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hst.backbone import Backbone, load_backbone
from hst.checkpoint import CheckpointError, load_task_model, save_checkpoint
from hst.config import HSNConfig
from hst.model import build_classifier, hst_spec
from hst.task_pool import TaskPool
from tests.hst.small_models import CLASSIFICATION

TASKS = {"birds": (5, 1, "side"), "cars": (3, 4, "side+cls"), "dogs": (7, 1, "side"), "boats": (2, 0, "side")}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("hst_vit_micro_patch8_64", "random")


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for task, (classes, registers, head_input) in TASKS.items():
        hsn = HSNConfig(widths=(8, 8, 16, 16), num_heads=(2, 2, 2, 2), num_registers=registers).resolve(backbone.depth)
        model = build_classifier(backbone, hsn, num_classes=classes, head_input=head_input, task=task)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(classes)))
        save_checkpoint(
            root / f"{task}.safetensors",
            model.state_dict(),
            task=task,
            class_names=[f"{task}-{i}" for i in range(classes)],
            method=hst_spec(hsn),
            **CLASSIFICATION,
            head={"kind": "classification", "num_classes": classes, "input": head_input},
            preprocessing={"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": None},
            backbone={"name": backbone.name, "identity": backbone.identity},
            metrics={},
            code_version="test",
            provenance={},
        )
    return root


@pytest.fixture
def checkpoint_of(folder: Path) -> Callable[[str], Path]:
    return lambda task: folder / f"{task}.safetensors"


def images(count: int, side: int = 32) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side)))


def test_a_mixed_batch_is_each_tasks_own_prediction(backbone: Backbone, checkpoint_of: Callable[[str], Path]) -> None:
    pool = TaskPool(backbone, checkpoint_of, capacity=2)
    tasks = ["dogs", "birds", "cars", "birds", "boats", "dogs", "birds"]
    batch = [*images(5), *images(2, side=40)]
    logits = pool.predict(tasks, batch)
    assert pool.tasks == ["dogs", "birds"]
    for task, image, own in zip(tasks, batch, logits, strict=True):
        model, header = load_task_model(checkpoint_of(task), backbone)
        assert own.shape == (len(header.class_names),)
        torch.testing.assert_close(own, model.predict(image[None])[0], rtol=1e-4, atol=1e-5)
    assert not any(own.requires_grad for own in logits)


def test_the_task_that_was_not_asked_for_the_longest_goes_and_comes_back(
    backbone: Backbone, checkpoint_of: Callable[[str], Path]
) -> None:
    loads: list[str] = []

    def counted(task: str) -> Path:
        loads.append(task)
        return checkpoint_of(task)

    pool = TaskPool(backbone, counted, capacity=2)
    for task in ("birds", "cars", "birds", "dogs"):
        assert pool.get(task).header.task == task
    assert pool.tasks == ["birds", "dogs"]
    assert loads == ["birds", "cars", "dogs"]
    pool.predict(["birds", "cars"], images(2))
    assert loads == ["birds", "cars", "dogs", "cars"]
    assert pool.tasks == ["birds", "cars"]
    pool.drop("birds")
    pool.drop("never there")
    assert pool.tasks == ["cars"]


def test_what_cannot_be_served_is_told_before_anything_is_computed(
    backbone: Backbone, checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="capacity=0: expected at least 1 task"):
        TaskPool(backbone, checkpoint_of, capacity=0)
    pool = TaskPool(backbone, checkpoint_of)
    assert pool.predict([], []) == []
    with pytest.raises(ValueError, match="1 tasks for 2 images"):
        pool.predict(["birds"], images(2))
    with pytest.raises(ValueError, match=r"image 1 is float32 \(1, 3, 64, 64\): expected a normalised image"):
        pool.predict(["birds"] * 2, [*images(1), torch.zeros(1, 3, 64, 64)])
    monkeypatch.setattr("hst.task_pool.forward_tasks", lambda *_: pytest.fail("computed"))
    with pytest.raises(CheckpointError, match=r"planes\.safetensors: cannot be opened"):
        pool.predict(["birds", "planes"], images(2))
    small = TaskPool(backbone, checkpoint_of, capacity=1)
    with pytest.raises(CheckpointError):
        small.predict(["birds", "cars", "planes"], images(3))
    assert small.tasks == ["cars"]
    swapped = TaskPool(backbone, lambda task: checkpoint_of("cars"))
    with pytest.raises(CheckpointError, match="is a checkpoint of cars, and birds was asked for"):
        swapped.get("birds")
    assert swapped.tasks == []
    other = load_backbone("hst_vit_micro_patch8_64", "random")
    other.identity = "0" * 64
    with pytest.raises(CheckpointError, match="identity"):
        TaskPool(other, checkpoint_of).get("birds")
