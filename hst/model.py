"""A task model: a method and a head on one shared frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hst.backbone import Backbone
from hst.config import MEMORY_MODES, HSNConfig
from hst.heads import HEADS
from hst.layers.batch_norm import GlobalBatchNorm
from hst.lookup import look_up
from hst.methods import METHODS
from hst.protocols import Head, Method, Outputs, Targets
from hst.randomness import seeded


class TaskModel(nn.Module):
    """What one task trains. ``state_dict()`` is the light checkpoint's content: nothing of the frozen ViT is in it.

    Args:
        extractor: the method, a module.
        head: the task's head, a module.
    """

    extractor: Any
    """A `Method` that is an ``nn.Module``; Python's types cannot say both."""
    head: Any
    """A `Head` that is an ``nn.Module``."""

    def __init__(self, extractor: Method, head: Head) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    @property
    def backbone(self) -> Backbone:
        """The shared frozen ViT; not a submodule."""
        return self.extractor.backbone

    @property
    def memory(self) -> str:
        """What a training step keeps: one of `hst.config.MEMORY_MODES`, which can be set at any time."""
        return self.extractor.memory

    @memory.setter
    def memory(self, mode: str) -> None:
        if mode not in MEMORY_MODES:
            raise ValueError(f"memory={mode!r}: expected one of {', '.join(MEMORY_MODES)}")
        self.extractor.memory = mode

    def forward(
        self, images: torch.Tensor, targets: Targets, path_scales: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The losses of a batch, scalars by name (see `hst.protocols.total_loss`).

        Args:
            images: normalised, (B, 3, H, W).
            targets: what the head's losses take. For a classification head these are labels (B,), int64, or soft
                targets (B, classes).
            path_scales: drop-path scales (paths, B), drawn by `hst.layers.drop_path.draw_path_scales`, or None.
        """
        return self.head.losses(self.outputs(images, path_scales), targets)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> Outputs:
        """Normalised images (B, 3, H, W) -> the head's outputs, with evaluation statistics and without drop-path.

        The outputs of a classification head are logits (B, classes).

        Raises:
            ValueError: the images are of another shape or type.
        """
        check_images(images)
        was_training = self.training
        self.eval()
        try:
            return self.outputs(images, None)
        finally:
            self.train(was_training)

    @property
    def has_batch_statistics(self) -> bool:
        """Whether a batch norm is in it, whose statistics `estimate_statistics` can replace."""
        return any(isinstance(module, GlobalBatchNorm) for module in self.modules())

    @torch.no_grad()
    def estimate_statistics(self, images: torch.Tensor, number: int) -> None:
        """Take one batch of training images into the statistics that evaluation uses.

        Training moves them by a tenth at each step, from mean 0 and variance 1, while the weights change. After few
        steps they therefore belong to no weights. Called for the batches 1 to n of one size, this replaces them by
        their mean over these batches, for the weights as they are. The weights stay.

        Args:
            images: normalised, (B, 3, H, W), drawn at random, at least two. With several processes these are this
                process's part of the batch, and all processes call it.
            number: the batch's number, from 1. The first one replaces the statistics.
        """
        norms = [module for module in self.modules() if isinstance(module, GlobalBatchNorm)]
        was_training = self.training
        self.train()
        try:
            for norm in norms:
                norm.estimated_share = 1 / number
            self.outputs(images, None)
        finally:
            for norm in norms:
                norm.estimated_share = None
            self.train(was_training)

    def path_rates(self, drop_path: float) -> torch.Tensor:
        """Drop rates of all residual branches for a recipe's ``drop_path``."""
        return self.extractor.path_rates(drop_path)

    def outputs(self, images: torch.Tensor, path_scales: torch.Tensor | None) -> Outputs:
        """Normalised images (B, 3, H, W) and drop-path scales (paths, B) or None -> the head's outputs."""
        pyramid, class_token = self.extractor(images, path_scales, class_token=self.head.needs_class_token)
        return self.head(pyramid, class_token)


def build_task_model(
    backbone: Backbone, method: Mapping[str, Any], head: Mapping[str, Any], *, seed: int = 0, task: str = "task"
) -> TaskModel:
    """A fresh task model on ``backbone``. Its parameters are a function of (seed, task).

    Args:
        backbone: the frozen ViT.
        method: ``{"name": a key of METHODS, ...}`` with the method's configuration.
        head: ``{"kind": a key of HEADS, ...}`` with the head's configuration.
        seed: the seed of the random draws.
        task: the task's name, which is part of the draws' key.

    Raises:
        ValueError: an unknown method or head, values that do not fit, or a class token that the ViT does not have.
    """
    method_class = look_up(METHODS, method["name"], "method")
    head_class = look_up(HEADS, head["kind"], "head")
    with seeded(seed, task, "init"):
        extractor = method_class.build(backbone, {k: v for k, v in method.items() if k != "name"})
        built = head_class.build(head, extractor.widths, backbone.embed_dim)
    if built.needs_class_token and not backbone.has_class_token:
        raise ValueError(f"head {dict(head)}: it needs a class token, which backbone {backbone.name!r} does not have")
    return TaskModel(extractor, built)


def check_images(images: torch.Tensor) -> None:
    """Raises ValueError unless these are images as models take them: (B, 3, H, W), normalised and so fractions."""
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"images are of type {type(images).__name__}: expected a torch tensor (B, 3, H, W), as "
            f"hst.preprocessing.Preprocessing.load makes it of a file"
        )
    if images.dim() == 4 and images.shape[1] == 3 and images.is_floating_point():
        return
    hints = []
    if not images.is_floating_point():
        hints.append("normalise pixels by hst.preprocessing.Preprocessing.normalize")
    if images.dim() == 3:
        hints.append("one image is a batch of one, images[None]")
    if images.dim() == 4 and images.shape[1] != 3 and images.shape[-1] == 3:
        hints.append("move the colours before height and width, images.permute(0, 3, 1, 2)")
    raise ValueError(
        f"images are {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}: expected normalised images "
        f"(B, 3, H, W), a floating-point tensor{''.join(f'; {hint}' for hint in hints)}"
    )


def hst_spec(hsn: HSNConfig) -> dict[str, Any]:
    """The specification of HST with a side network."""
    return {"name": "hst", **hsn.to_dict()}


def build_classifier(
    backbone: Backbone,
    hsn: HSNConfig,
    *,
    num_classes: int,
    head_input: str = "side",
    seed: int = 0,
    task: str = "task",
) -> TaskModel:
    """The paper's model: HST with a classification head.

    Args:
        backbone: the frozen ViT.
        hsn: the side network.
        num_classes: columns of the logits, at least 2.
        head_input: ``"side"`` (the paper) or ``"side+cls"`` (also the ViT's final class token).
        seed: the seed of the random draws.
        task: the task's name, which is part of the draws' key.

    Raises:
        ValueError: see `build_task_model`.
    """
    head = {"kind": "classification", "input": head_input, "num_classes": num_classes}
    return build_task_model(backbone, hst_spec(hsn), head, seed=seed, task=task)
