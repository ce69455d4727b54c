"""Tasks that share a pass through the ViT are the separate models: values, gradients, batch statistics."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hst.backbone import BlockOutputs, SharedBackbone
from hst.config import HSNConfig
from hst.layers.drop_path import draw_path_scales
from hst.model import TaskModel, build_classifier
from hst.multitask import forward_tasks, packs
from hst.randomness import generator
from hst.side.extractor import _alike
from hst.side.stacked import SideInput
from tests.hst.small_models import SMALL_HSN, small_backbone

KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "side"),
    "wider": ({"widths": (16, 24, 32, 40)}, "side"),
    "more registers": ({"num_registers": 3}, "side"),
    "no registers": ({"num_registers": 0}, "side"),
    "the ViT's norms": ({"tune_backbone_norms": False}, "side"),
    "with the class token": ({}, "side+cls"),
}
BACKBONE = small_backbone(dtype=torch.float64)


def model(kind: str, task: str) -> TaskModel:
    fields, head_input = KINDS[kind]
    config: HSNConfig = dataclasses.replace(SMALL_HSN, **fields)
    one = build_classifier(BACKBONE, config, num_classes=3, head_input=head_input, task=task).double()
    draws = generator(0, task, "test")
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return one


def separate(one: TaskModel, images: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    outputs: torch.Tensor = one.outputs(images, scales)
    return outputs


TWICE: dict[str, Any] = {
    "kinds": ["default", "more registers", "default"],
    "counts": [2, 3, 2, 2],
    "modes": ["speed"] * 4,
}


@settings(max_examples=20, deadline=None)
@example(**TWICE, drops=[True, False, False, False], side=40, training=True, stacked=True)
@example(**TWICE, drops=[False] * 4, side=32, training=False, stacked=True)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4),
    counts=st.lists(st.integers(2, 3), min_size=4, max_size=4),
    drops=st.lists(st.booleans(), min_size=4, max_size=4),
    modes=st.lists(st.sampled_from(["speed", "balanced", "memory"]), min_size=4, max_size=4),
    side=st.sampled_from([32, 40]),
    training=st.booleans(),
    stacked=st.booleans(),
)
def test_a_mixed_batch_is_the_separate_models(
    kinds: list[str], counts: list[int], drops: list[bool], modes: list[str], side: int, training: bool, stacked: bool
) -> None:
    together = [model(kind, f"task-{i}").train(training) for i, kind in enumerate(kinds)]
    for one, mode in zip(together, modes, strict=False):
        one.memory = mode
    apart = copy.deepcopy(together, {id(BACKBONE): BACKBONE})
    draws = generator(0, "images")
    images = [
        torch.randn(n, 3, side, side, generator=draws, dtype=torch.float64) for n, _ in zip(counts, kinds, strict=False)
    ]
    scales = [
        draw_path_scales(one.path_rates(0.4), len(batch), draws) if drop and training else None
        for one, batch, drop in zip(together, images, drops, strict=False)
    ]
    found = forward_tasks(together, images, scales, stacked=stacked)
    expected = [separate(one, batch, scale) for one, batch, scale in zip(apart, images, scales, strict=True)]
    weights = [torch.randn(value.shape, generator=draws, dtype=torch.float64) for value in expected]
    for values in (found, expected):
        sum((v * w).sum() for v, w in zip(values, weights, strict=True)).backward()
    for mixed, alone, ours, theirs in zip(found, expected, together, apart, strict=True):
        torch.testing.assert_close(mixed, alone, rtol=1e-10, atol=1e-10)
        for (name, parameter), same in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (parameter.grad is None) == (same.grad is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, same.grad, rtol=1e-10, atol=1e-10, msg=name)
        for (name, buffer), kept in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(buffer, kept, rtol=1e-12, atol=1e-12, msg=name)


def test_tasks_share_a_pass_where_they_tap_alike_with_as_many_registers() -> None:
    models = [model(kind, kind) for kind in KINDS]
    assert packs(models, [(32, 32)] * 6) == [[0, 1, 4, 5], [2], [3]]
    assert packs(models, [(32, 32)] * 5 + [(40, 40)]) == [[0, 1, 4], [2], [3], [5]]


def test_the_vit_runs_once_for_those_that_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [model("default", f"task-{i}") for i in range(3)]
    seen: list[int] = []
    hook = BACKBONE.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        forward_tasks(models, [torch.zeros(2, 3, 32, 32, dtype=torch.float64)] * 3)
    hook.remove()
    assert seen == [6]


def test_what_does_not_fit_together_is_refused() -> None:
    one, image = model("default", "one"), torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="2 models, 1 batches of images"):
        forward_tasks([one, one], [image])
    other = build_classifier(small_backbone(dtype=torch.float64), SMALL_HSN, num_classes=3).double()
    with pytest.raises(ValueError, match="several backbones"):
        forward_tasks([one, other], [image, image])


def test_side_networks_of_one_shape_on_as_many_images_are_stacked_where_all_is_kept() -> None:
    kinds = ["default", "default", "wider", "default", "default"]
    methods = [model(kind, f"task-{i}").extractor for i, kind in enumerate(kinds)]
    methods[3].memory = "balanced"

    def inputs(*counts: int) -> list[SideInput]:
        vit = BlockOutputs({}, (4, 4), 1, None)
        return [SideInput(torch.empty(count, 3, 32, 32), vit, None) for count in counts]

    assert _alike(methods, inputs(2, 2, 2, 2, 3)) == [[0, 1], [2], [3], [4]]
    assert _alike(methods, inputs(2, 2, 2, 2, 2)) == [[0, 1, 4], [2], [3]]
    methods[1].eval()
    assert _alike(methods, inputs(2, 2, 2, 2, 2)) == [[0, 4], [1], [2], [3]]


def test_stacked_side_networks_take_part_in_autocast() -> None:
    models = [model("default", f"task-{i}").float() for i in range(2)]
    backbone = small_backbone()
    images = [torch.randn(2, 3, 32, 32, generator=generator(0, "images")) for _ in models]
    for one in models:
        one.extractor._backbone = SharedBackbone(backbone)
    types: list[list[tuple[str, torch.dtype]]] = [[], []]
    logits = []
    for stacked in (False, True):
        found = types[stacked]
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name, found=found: found.append((name, out.dtype)))
            for name, module in models[0].extractor.side.named_modules()
            if not list(module.children())
        ]
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(forward_tasks(models, images, stacked=stacked))
        for hook in hooks:
            hook.remove()
    assert len(types[0]) > 20
    assert types[0] == types[1], "of every layer"
    assert {dtype for _, dtype in types[0]} == {torch.bfloat16}
    for alone, same in zip(*logits, strict=True):
        torch.testing.assert_close(alone, same, rtol=0.02, atol=0.02)
