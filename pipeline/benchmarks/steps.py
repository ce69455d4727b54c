"""Train steps and predictions as the training loop makes them: on CUDA recorded after the first few, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from hst.gpu.recorded import AFTER, Recorder
from hst.layers.gradients import gradients_of

Loss = Callable[..., torch.Tensor]


class Steps:
    """Makes train steps of some parameters with AdamW.

    Args:
        parameters: the parameters to train.
        recorder: shared by all models that take turns, so that their recordings share memory.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], recorder: Recorder) -> None:
        self._parameters = list(parameters)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-4, fused=True)
        self._recorder = recorder
        self._key = object()  # not self, which refers to the recorder

    def step(self, loss: Loss, inputs: Sequence[torch.Tensor]) -> None:
        """Makes one step with the gradients of ``loss(*inputs)``. ``loss`` must always be the same function."""

        def work(*given: torch.Tensor) -> Sequence[torch.Tensor | None]:
            return gradients_of(loss(*given), self._parameters)

        for parameter, own in zip(self._parameters, self._recorder.run([self._key], "step", work, inputs), strict=True):
            parameter.grad = own
        self._optimizer.step()

    def predict(self, prediction: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> None:
        """Predicts once. ``prediction`` must always be the same function."""
        self._recorder.run([self._key], "predict", lambda x: [prediction(x)], [images])


def recorder_of(device: torch.device, *, eager: bool = False) -> Recorder:
    """A recorder for work on ``device``. If ``eager``, it records nothing, and every kernel is launched by itself."""
    return Recorder(torch.device("cpu") if eager else device)


def uncounted(device: torch.device) -> int:
    """How many calls to make before the measured ones, because the first calls do work that happens only once."""
    return AFTER + 2 if device.type == "cuda" else 1
