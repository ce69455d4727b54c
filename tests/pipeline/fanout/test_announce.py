"""What a fan-out says of its images before it begins."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hst.config import HSN_B
from pipeline.fanout.announce import say_pixels
from pipeline.fanout.options import FanoutOptions
from pipeline.tasks.catalogue import TASKS
from pipeline.tasks.recipe import Recipe
from pipeline.training.unit import preprocessing_of, with_pixels_of
from pipeline.workflow.job import TaskJob

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def said(backbone: str, weights: str | None = None, **recipe: Any) -> list[str]:
    changed = with_pixels_of(dataclasses.replace(TASKS["demo-digits"].recipe, **recipe), backbone)
    job = TaskJob(task=TASKS["demo-digits"], recipe=changed, hsn=HSN_B, seed=0, data="/data")
    lines: list[str] = []
    say_pixels(FanoutOptions(tasks=("demo-digits",), backbone_weights=weights), [job], backbone, lines.append)
    return lines


def test_the_backbones_mean_and_std_are_told_unless_all_tasks_have_their_own() -> None:
    (line,) = said("vit_base_patch16_224.mae")
    assert line == (
        "images: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225, bicubic, "
        "as in the pretraining of vit_base_patch16_224.mae"
    )
    assert said("vit_base_patch16_224.mae", mean=(0.1, 0.2, 0.3)) == []


def test_a_name_without_a_tag_is_doubted_if_the_weights_are_a_file() -> None:
    assert len(said("vit_tiny_patch16_224")) == 1
    assert len(said("vit_tiny_patch16_224.augreg_in21k", "/weights.safetensors")) == 1
    assert "--backbone vit_tiny_patch16_224.TAG" in said("vit_tiny_patch16_224", "/weights.safetensors")[1]


@pytest.mark.parametrize("setting", [{}, {"mean": (0.4, 0.4, 0.4)}, {"interpolation": "nearest"}])
def test_a_recipe_takes_from_the_backbone_what_it_leaves_open(setting: dict[str, Any]) -> None:
    found = preprocessing_of(Recipe(**setting), "vit_base_patch14_dinov2.lvd142m")
    expected = {"mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bicubic", **setting}
    assert {name: getattr(found, name) for name in expected} == expected
