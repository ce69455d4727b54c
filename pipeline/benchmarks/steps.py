"""Train steps and predictions as the training loop makes them: on CUDA recorded after the first few, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from hst.gpu.recorded import AFTER, Recorder
from hst.layers.gradients import gradients_of

Loss = Callable[..., torch.Tensor]


class Steps:
    """Of parameters, by AdamW.

    Args:
        parameters: that are trained.
        recorder: of all that take turns: what it records shares memory.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], recorder: Recorder) -> None:
        self._parameters = list(parameters)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-4, fused=True)
        self._recorder = recorder
        self._key = object()  # not this, which knows the recorder

    def step(self, loss: Loss, inputs: Sequence[torch.Tensor]) -> None:
        """One, by the gradients of ``loss(*inputs)``, always the same function."""

        def work(*given: torch.Tensor) -> Sequence[torch.Tensor | None]:
            return gradients_of(loss(*given), self._parameters)

        for parameter, own in zip(self._parameters, self._recorder.run([self._key], "step", work, inputs), strict=True):
            parameter.grad = own
        self._optimizer.step()

    def predict(self, prediction: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> None:
        """Always the same function."""
        self._recorder.run([self._key], "predict", lambda x: [prediction(x)], [images])


def recorder_of(device: torch.device, *, eager: bool = False) -> Recorder:
    """Of work on ``device``; one that records nothing where every kernel is to be launched by itself."""
    return Recorder(torch.device("cpu") if eager else device)


def uncounted(device: torch.device) -> int:
    """How often something is to be done before it is measured, for what comes once."""
    return AFTER + 2 if device.type == "cuda" else 1
