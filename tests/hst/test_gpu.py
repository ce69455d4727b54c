"""On a GPU, the fast ways (kernels, recordings, a second stream) give the results of plain mode."""

from __future__ import annotations

import pytest
import torch

from hst import plain
from hst.config import HSN_PRESETS, MEMORY_MODES
from hst.gpu.recorded import AFTER, Recorder, Tensors
from hst.layers.drop_path import draw_path_scales
from hst.model import TaskModel, build_classifier
from hst.multitask import forward_tasks
from hst.randomness import generator
from tests.hst.small_models import small_backbone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BATCH, SIDE = 4, 64


def models(count: int = 1, dtype: torch.dtype = torch.float32) -> list[TaskModel]:
    """HSN-B on a small ViT, with random numbers added to its parameters: equal initial values would hide errors."""
    backbone = small_backbone(img_size=SIDE, embed_dim=96, num_heads=3, depth=12, dtype=dtype).to("cuda")
    found = []
    for i in range(count):
        model = build_classifier(backbone, HSN_PRESETS["HSN_B"], num_classes=5, task=str(i)).to("cuda", dtype).train()
        draws = generator(0, str(i), "test")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64).to(parameter))
        found.append(model)
    return found


def images(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=draws, dtype=torch.float64).to("cuda", dtype)


TARGETS = torch.arange(BATCH) % 5


def gradients(own: list[TaskModel], batches: list[torch.Tensor], *, low: bool = False) -> list[torch.Tensor | None]:
    """Losses, then gradients, of a joint step of all models."""
    rates = own[0].path_rates(0.3)
    scales = [draw_path_scales(rates, BATCH, generator(i, "scales")) for i in range(len(own))]
    on_gpu = [None if one is None else one.to("cuda") for one in scales]
    targets = TARGETS.to("cuda")
    return list(_step(own, batches, on_gpu, targets, low))


def _step(
    own: list[TaskModel],
    batches: list[torch.Tensor],
    scales: list[torch.Tensor | None],
    targets: torch.Tensor,
    low: bool,
) -> Tensors:
    with torch.autocast("cuda", torch.bfloat16, enabled=low):
        logits = forward_tasks(own, batches, scales)
        losses = [model.head.losses(one, targets)["loss"] for model, one in zip(own, logits, strict=True)]
    parameters = [p for model in own for p in model.parameters()]
    return [*losses, *torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)]


def assert_near(got: Tensors, want: Tensors, tolerance: float) -> None:
    """Relative to each norm and to the largest: some gradients are 0 up to rounding, such as those of keys' biases."""
    largest = max(float(other.norm()) for other in want if other is not None)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert float((one - other).norm()) < tolerance * (float(other.norm()) + 1e-3 * largest)


@pytest.mark.parametrize("mode", MEMORY_MODES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_by_kernels_is_the_plain_one_in_float64(count: int, mode: str) -> None:
    batches = [images(i, torch.float64) for i in range(count)]
    own = models(count, torch.float64)
    for model in own:
        model.memory = mode
    with plain.only():
        want = gradients(own, batches)
    assert_near(gradients(own, batches), want, 1e-9)


def test_in_bfloat16_it_is_as_near_to_float64_as_the_plain_one() -> None:
    with plain.only():
        exact = gradients(models(dtype=torch.float64), [images(0, torch.float64)])
        plains = gradients(models(), [images(0)], low=True)
    ours = gradients(models(), [images(0)], low=True)
    largest = max(float(want.norm()) for want in exact if want is not None)
    for one, other, want in zip(ours, plains, exact, strict=True):
        if one is not None and other is not None and want is not None:
            near = float((other - want).norm())
            assert float((one - want).norm()) < 1.5 * near + 1e-3 * (float(want.norm()) + largest)


@pytest.mark.parametrize("count", [1, 2])
def test_a_recorded_step_does_with_each_batch_what_an_unrecorded_one_does(count: int) -> None:
    own, twins = models(count), models(count)
    recorder = Recorder(torch.device("cuda"))
    rates = own[0].path_rates(0.3)
    for number in range(AFTER + 4):
        batches = [images(10 * number + i) for i in range(count)]
        scales = [draw_path_scales(rates, BATCH, generator(number, i)) for i in range(count)]
        on_gpu = [None if one is None else one.to("cuda") for one in scales]
        targets = (TARGETS + number).remainder(5).to("cuda")

        def work(*given: torch.Tensor, own: list[TaskModel] = own) -> Tensors:
            return _step(own, list(given[:count]), list(given[count:-1]), given[-1], False)

        got = recorder.run(own, "step", work, [*batches, *on_gpu, targets])
        want = _step(twins, batches, on_gpu, targets, False)
        assert_near(got, want, 1e-4)
    assert len(recorder._recordings) == 1
    for one, other in zip(own, twins, strict=True):
        for buffer, same in zip(one.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(buffer, same, rtol=1e-4, atol=1e-5)


def test_prediction_beside_the_vit_and_recorded_is_the_plain_one() -> None:
    (model,) = models()
    recorder = Recorder(torch.device("cuda"))
    for number in range(AFTER + 4):
        batch = images(number)
        with plain.only():
            want = model.predict(batch)
        torch.testing.assert_close(model.predict(batch), want, rtol=1e-3, atol=1e-4)
        (got,) = recorder.run([model], "predict", lambda x: [model.predict(x)], [batch])
        assert got is not None
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert len(recorder._recordings) == 1
