"""What a few steps on random pixels tell about a model's time and memory."""

import dataclasses
from typing import Any

import pytest
import torch

from hst.backbone import Backbone
from hst.model import build_classifier, hst_spec
from pipeline.kinds.classification import Classification
from pipeline.tasks.recipe import Recipe
from pipeline.training import calibrate
from pipeline.training.calibrate import measure
from pipeline.training.memory import saved_bytes
from tests.pipeline.training.conftest import TINY_HSN


def measured(backbone: Backbone, *, seconds: float, batch_size: int = 8, **recipe: Any) -> dict[str, Any]:
    model = {
        "recipe": {"image_size": 32, **recipe},
        "kind": "classification",
        "method": hst_spec(TINY_HSN.resolve(backbone.depth)),
        "batch_size": batch_size,
    }
    names = {"name": backbone.name, "identity": backbone.identity}
    (found,) = measure(backbone.arrays(), names, [model], threads=1, seconds=seconds)
    return found


def test_a_model_has_a_rate_and_a_size(tiny_backbone: Backbone) -> None:
    found = measured(tiny_backbone, seconds=5)
    assert min(found["train_seconds"], found["eval_seconds"]) > 0
    assert found["base_bytes"] > 10**7
    assert found["device_bytes"] == 0
    assert found["kept"]["speed"] == 1 > found["kept"]["balanced"] > found["kept"]["memory"] > 0
    double = measured(tiny_backbone, seconds=5, precision="float64")["image_bytes"]
    assert double == pytest.approx(2 * found["image_bytes"], rel=0.05)


def test_batches_grow_up_to_a_workers_while_there_is_time(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    train = calibrate._Steps.train

    def counted(steps: Any, count: int) -> None:
        counts.append(count)
        train(steps, count)

    monkeypatch.setattr(calibrate._Steps, "train", counted)
    measured(tiny_backbone, seconds=600, batch_size=6)
    assert list(dict.fromkeys(counts)) == [2, 4, 6]
    counts.clear()
    measured(tiny_backbone, seconds=0, batch_size=6)
    assert counts == [2, 2], "one for what comes once and one for time"
    counts.clear()
    measured(tiny_backbone, seconds=600, batch_size=1)
    assert set(counts) == {2}, "batch norm needs two"


def test_saved_memory_is_counted_once_and_without_parameters(tiny_backbone: Backbone) -> None:
    steps = _steps(tiny_backbone)
    assert steps.saved_bytes(4) == pytest.approx(2 * steps.saved_bytes(2), rel=0.02)
    weight = torch.nn.Parameter(torch.randn(1000, 8))
    x = torch.randn(4, 1000, requires_grad=True)
    assert saved_bytes(lambda: (x @ weight).square().sum(), own=[weight]) == x.nbytes + 4 * 8 * 4


def _steps(backbone: Backbone) -> Any:
    recipe = dataclasses.replace(Recipe(), image_size=32)
    model = build_classifier(backbone, TINY_HSN, num_classes=10)
    return calibrate._Steps(model, Classification(), recipe, torch.device("cpu"))
