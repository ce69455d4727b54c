"""Compares the Side block's kernels with plain operations; without a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hst import plain
from hst.config import HSN_PRESETS, MEMORY_MODES
from hst.gpu.fused_side_block import fits
from hst.layers.drop_path import draw_path_scales
from hst.model import TaskModel, build_classifier
from hst.multitask import forward_tasks
from hst.randomness import generator
from hst.side.side_block import SideBlock
from tests.hst.small_models import SMALL_HSN, small_backbone

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOW = torch.bfloat16 if DEVICE == "cuda" else torch.float16
"""The interpreter cannot multiply bfloat16."""


def randomised(width: int, heads: int, mlp_ratio: float = 4.0) -> SideBlock:
    block = SideBlock(width, heads, mlp_ratio, cross_attention=True, inject=True).double().to(DEVICE)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return block


class Case:
    """A block and its inputs."""

    def __init__(
        self,
        *,
        samples: int = 2,
        width: int = 8,
        heads: int = 2,
        tokens: int = 2,
        size: tuple[int, int] = (5, 7),
        grid: tuple[int, int] = (3, 2),
        drop: bool = True,
        mlp_ratio: float = 4.0,
    ) -> None:
        self.block = randomised(width, heads, mlp_ratio)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=torch.float64, device=DEVICE).requires_grad_()

        self.x = randn(samples, *size, width)
        self.meta = randn(samples, tokens, width)
        self.projected = randn(samples, 3 + grid[0] * grid[1], width)
        self.grid = grid
        self.scales = ((torch.rand(2, samples) < 0.6) / 0.6).to(DEVICE) if drop else None
        self.weights = torch.randn(samples, *size, width, dtype=torch.float64, device=DEVICE)

    def run(self, *, fused: bool, low: bool = False) -> list[torch.Tensor]:
        """The output, and the gradients of a function of it."""
        patches = self.projected[:, 3:].unflatten(1, self.grid)
        call = self.block._fused if fused else self.block.forward
        with plain.only(), torch.autocast(DEVICE, LOW, enabled=low):
            out = call(self.x, self.meta, patches, self.scales)
        inputs = [self.x, self.meta, self.projected, *self.block.parameters()]
        return [out, *torch.autograd.grad((out * self.weights).sum(), inputs)]


def assert_equal(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@given(
    samples=st.integers(1, 3),
    heads=st.integers(1, 3),
    of_head=st.integers(1, 5),
    tokens=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    drop=st.booleans(),
    mlp_ratio=st.sampled_from([1.0, 2.5, 4.0]),
)
@settings(max_examples=15 if DEVICE == "cpu" else 5, deadline=None)
def test_output_and_gradients_equal_plain_operations(
    samples: int,
    heads: int,
    of_head: int,
    tokens: int,
    size: tuple[int, int],
    grid: tuple[int, int],
    drop: bool,
    mlp_ratio: float,
) -> None:
    case = Case(
        samples=samples,
        width=heads * of_head,
        heads=heads,
        tokens=tokens,
        size=size,
        grid=grid,
        drop=drop,
        mlp_ratio=mlp_ratio,
    )
    assert_equal(case.run(fused=True), case.run(fused=False))


@pytest.mark.parametrize(("stage", "side"), [(0, 9), (1, 8), (2, 6), (3, 7)])
def test_at_the_widths_of_hsn_b(stage: int, side: int) -> None:
    config = HSN_PRESETS["HSN_B"]
    if DEVICE == "cuda" and not fits(config.widths[stage], config.num_heads[stage], 2, torch.float64):
        pytest.skip("too wide for a GPU in float64")
    case = Case(width=config.widths[stage], heads=config.num_heads[stage], size=(side, side), grid=(6, 6))
    assert_equal(case.run(fused=True), case.run(fused=False))


def test_in_half_precision_it_is_as_near_to_float64_as_plain_operations() -> None:
    case = Case(samples=3, width=32, heads=2, size=(12, 12), grid=(6, 6), drop=False)
    exact = case.run(fused=False)
    case.block.float()
    for name in ("x", "meta", "projected", "weights"):
        setattr(case, name, getattr(case, name).detach().float().requires_grad_())
    ours, plains = case.run(fused=True, low=True), case.run(fused=False, low=True)
    for one, other, want in zip(ours, plains, exact, strict=True):
        assert one.dtype == other.dtype
        near = (other - want).norm() / want.norm()
        assert (one - want).norm() / want.norm() < max(1.2 * near, 1e-3)


def small_model(task: str) -> TaskModel:
    """A model with random numbers added to its parameters: equal initial values would hide errors."""
    model = build_classifier(BACKBONE, SMALL_HSN, num_classes=3, task=task).double().to(DEVICE).train()
    draws = generator(0, task, "test")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64).to(DEVICE))
    return model


BACKBONE = small_backbone(dtype=torch.float64).to(DEVICE)
IMAGES = torch.randn(2, 3, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
TARGETS = torch.tensor([0, 1, 2], device=DEVICE)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the kernels run on a CPU too, unless `hst.plain` forbids it. Returns the width of each block that asks."""
    asked: list[int] = []

    def can_run(x: torch.Tensor, heads: int, num_meta_tokens: int) -> bool:
        if plain.is_on():
            return False
        asked.append(x.shape[-1])
        return fits(x.shape[-1], heads, num_meta_tokens, x.dtype)

    monkeypatch.setattr("hst.side.side_block.can_run", can_run)
    return asked


def run_models(mode: str = "speed", *, together: bool = False) -> list[torch.Tensor]:
    """The losses, gradients and buffers of two models after a step."""
    models = [small_model(task) for task in ("a", "b")]
    drop = draw_path_scales(models[1].path_rates(0.5), 3, generator(0, "scales"))
    assert drop is not None
    scales = [None, drop.to(DEVICE)]
    for model in models:
        model.memory = mode
    if together:
        logits = forward_tasks(models, list(IMAGES), scales, stacked=True)
        losses = [model.head.losses(own, TARGETS)["loss"] for model, own in zip(models, logits, strict=True)]
    else:
        losses = [m(x, TARGETS, own)["loss"] for m, x, own in zip(models, IMAGES, scales, strict=True)]
    torch.stack(losses).sum().backward()
    grads = [p.grad for model in models for p in model.parameters() if p.grad is not None]
    return [*losses, *grads, *(buffer for model in models for buffer in model.buffers())]


@pytest.mark.parametrize("mode", MEMORY_MODES[:2])
def test_a_model_trains_the_same_with_them(mode: str, kernels: list[int]) -> None:
    with plain.only():
        expected = run_models(mode)
    assert not kernels
    assert_equal(run_models(mode), expected)
    assert set(kernels) == set(SMALL_HSN.widths)


def test_models_that_are_stacked_train_the_same_with_them(kernels: list[int]) -> None:
    with plain.only():
        expected = run_models()
    assert_equal(run_models(together=True), expected)
    assert len(kernels) == 4, "one call per block for both models"


def test_what_does_not_fit_a_tile_goes_the_plain_way() -> None:
    assert fits(128, 8, 2, torch.bfloat16)
    assert not fits(129, 8, 2, torch.bfloat16)
    assert fits(64, 8, 2, torch.float32)
    assert not fits(72, 12, 2, torch.float32)
    assert fits(72, 12, 2, torch.bfloat16)
    assert not fits(72, 12, 3, torch.bfloat16)
    assert fits(64, 8, 8, torch.bfloat16)
    assert not fits(64, 8, 9, torch.bfloat16)


def test_a_cpu_goes_the_plain_way() -> None:
    block = SideBlock(8, 2, 4.0, cross_attention=True, inject=True)
    assert not block.is_fused(torch.zeros(1, 2, 2, 8), 2)


def test_they_compile_for_a_gpu_and_fit_its_shared_memory() -> None:
    """The interpreter accepts code that the compiler refuses. Compiling needs no GPU, but its own process."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.hst.gpu.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared = dict(line.split() for line in done.stdout.splitlines())
    side = [f"side_block.{name}" for name in ("backward_mlp", "backward_tokens", "forward")]
    assert sorted(shared) == ["norm.backward", "norm.forward", *side]
    assert all(int(taken) < 100_000 for taken in shared.values()), "two programs must fit on a multiprocessor"
