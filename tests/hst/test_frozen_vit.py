"""The frozen ViT holds no task state. Packing, serving and search rely on this."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hst.backbone import Backbone, backbone_identity
from hst.config import HSNConfig
from hst.layers.drop_path import draw_path_scales
from hst.model import TaskModel, build_classifier
from hst.randomness import generator
from tests.hst.small_models import SMALL_HSN, small_backbone

TASKS: dict[str, tuple[HSNConfig, str]] = {
    "task-one": (SMALL_HSN, "side"),
    "task-two": (dataclasses.replace(SMALL_HSN, widths=(4, 6, 8, 10), num_registers=3, share_bridge=False), "side+cls"),
}
STEPS = 4


class Training:
    """One task's model, optimiser and data, trained one step at a time."""

    def __init__(self, task: str, backbone: Backbone) -> None:
        config, head_input = TASKS[task]
        self.task = task
        self.model = build_classifier(backbone, config, num_classes=3, head_input=head_input, task=task)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=1e-2)

    def step(self, step: int) -> None:
        draws = generator(0, self.task, "data", step)
        images = torch.randn(4, 3, 32, 32, generator=draws)
        targets = torch.randint(3, (4,), generator=draws)
        scales = draw_path_scales(self.model.path_rates(0.3), 4, draws)
        self.optimizer.zero_grad()
        self.model(images, targets, scales)["loss"].backward()
        self.optimizer.step()


def trained_alone(task: str) -> TaskModel:
    training = Training(task, small_backbone())
    for step in range(STEPS):
        training.step(step)
    return training.model


@pytest.fixture(scope="module")
def shared() -> tuple[Backbone, dict[str, torch.Tensor], dict[str, Training]]:
    """A backbone, its weights before training, and two tasks trained on it in turn."""
    torch.set_num_threads(1)
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.vit.state_dict().items()}
    trainings = {task: Training(task, backbone) for task in TASKS}
    for step in range(STEPS):
        for training in trainings.values():
            training.step(step)
    return backbone, before, trainings


def test_the_vit_is_unchanged_bit_for_bit_after_two_tasks_trained_on_it(
    shared: tuple[Backbone, dict[str, torch.Tensor], dict[str, Training]],
) -> None:
    backbone, before, _ = shared
    after = backbone.vit.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert backbone_identity(after) == backbone.identity == backbone_identity(before)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_bit_equal_to_the_same_task_trained_alone(
    task: str, shared: tuple[Backbone, dict[str, torch.Tensor], dict[str, Training]]
) -> None:
    together, alone = shared[2][task].model.state_dict(), trained_alone(task).state_dict()
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[name], alone[name]) for name in alone)


@pytest.mark.parametrize("task", TASKS)
def test_training_moved_every_parameter_of_the_task(
    task: str, shared: tuple[Backbone, dict[str, torch.Tensor], dict[str, Training]]
) -> None:
    """A task that trains nothing would pass the tests above."""
    trained = shared[2][task].model
    fresh = Training(task, small_backbone()).model
    dead = {name for name, p in fresh.named_parameters() if torch.equal(p, trained.get_parameter(name))}
    assert dead == set()


def test_the_vit_has_no_trainable_parameter_no_gradient_and_no_place_among_the_tasks_modules(
    shared: tuple[Backbone, dict[str, torch.Tensor], dict[str, Training]],
) -> None:
    backbone, _, trainings = shared
    assert all(not p.requires_grad and p.grad is None for p in backbone.parameters())
    for training in trainings.values():
        assert training.model.backbone is backbone
        assert all(module is not backbone for module in training.model.modules())
        own = {p.data_ptr() for p in training.model.parameters()}
        assert own.isdisjoint(p.data_ptr() for p in backbone.parameters())


def test_train_and_moving_a_task_leave_the_vit_as_it_is() -> None:
    backbone = small_backbone()
    model = build_classifier(backbone, SMALL_HSN, num_classes=3)
    model.train().double()
    assert not any(module.training for module in backbone.modules())
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert all(p.dtype == torch.float32 for p in backbone.parameters())


def test_weights_in_shared_memory_are_used_where_they_are_and_not_written_to() -> None:
    source = small_backbone(img_size=64, embed_dim=128, depth=8, num_heads=4, mlp_ratio=4)
    arrays = source.arrays()
    for array in arrays.values():
        array.flags.writeable = False
    backbone = Backbone.from_arrays("hst_vit_micro_patch8_64", arrays, source.identity)
    assert backbone.vit.norm.weight.data_ptr() == arrays["norm.weight"].ctypes.data
    model = build_classifier(backbone, SMALL_HSN, num_classes=3)
    model(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))["loss"].backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert backbone_identity(backbone.vit.state_dict()) == source.identity
