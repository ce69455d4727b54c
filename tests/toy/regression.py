"""A kind of task: one number an image."""

from pathlib import Path
from typing import Any

import torch

from tests.toy.mean_error import MeanError


class Regression:
    pictures = "tests.toy.regression:draw"

    def head_spec(self, recipe: Any, class_names: Any) -> dict[str, Any]:
        return {"kind": "number"}

    def prepare_head(self, head: Any, recipe: Any) -> None:
        pass  # no field of the recipe is about this head's losses

    def augment_image(self, recipe: Any, preprocessing: Any, *, seed: int, task: str) -> None:
        return None  # the pixels are the same in every epoch

    def augment_batch(
        self, recipe: Any, preprocessing: Any, head: Any, *, group: Any, dtype: torch.dtype, **draws: Any
    ) -> Any:
        return lambda batch: (preprocessing.normalize(group.put(batch.images), dtype), group.put(batch.labels))

    def example_targets(self, head: Any, count: int) -> torch.Tensor:
        return torch.linspace(0, 1, count, dtype=torch.float64)

    def metric(self, head: Any, device: torch.device) -> MeanError:
        return MeanError(device)

    def doubts(self, details: dict[str, Any], class_names: Any, train_loss: float) -> list[str]:
        return []  # or what a person should be told of such an evaluation, a sentence each


def draw(details: dict[str, Any], class_names: Any, folder: Path, *, title: str) -> list[Path]:
    return []  # or the PNG files that it wrote into the folder
