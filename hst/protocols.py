"""The two parts of a task model: a method, which makes features on the frozen ViT, and a head, which makes answers.

Both are ``nn.Module``s whose parameters and buffers are exactly what the task owns. A new one is a file of its own and
a line in `hst.methods.METHODS` or `hst.heads.HEADS`; docs/extending.md shows both.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from hst.backbone import Backbone

Outputs = Any
"""A head's outputs for a batch: a tensor, or a dict of tensors by name. Their first dimension is the batch."""
Targets = Any
"""What a batch's outputs are compared with: a tensor, or a nesting of lists and dicts with tensors."""
Pyramid = list[torch.Tensor]
"""Four maps (B, H/s, W/s, C) at strides s = 4, 8, 16, 32."""
Features = tuple[Pyramid, torch.Tensor | None]
"""A pyramid, and the ViT's final class token (B, embed_dim), or None if it was not asked for."""


class Method(Protocol):
    """Makes a feature pyramid from images with a frozen ViT. Its parameters are what it tunes."""

    packable: bool
    """Whether tasks can share a pass through the ViT. Where it is false, `sharing_key` and `forward_together` are never
    called, and a method need not have them."""
    memory: str
    """What a training step keeps: one of `hst.config.MEMORY_MODES`. A method without such modes ignores it."""

    @classmethod
    def build(cls, backbone: Backbone, config: Mapping[str, Any]) -> Method:
        """A fresh method on ``backbone``.

        Args:
            backbone: the frozen ViT. It is not a submodule of the method, and is never written to.
            config: the fields of `spec` except the name, as plain JSON values. Absent fields get their defaults.

        Raises:
            ValueError: an unknown field, or values that do not fit the ViT.
        """
        ...

    @property
    def backbone(self) -> Backbone:
        """The shared frozen ViT, or the method's own copy where it changes the ViT itself."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the pyramid's four maps."""
        ...

    def spec(self) -> dict[str, Any]:
        """The name in `METHODS` and the complete configuration, as plain JSON values: ``{"name": "hst", ...}``."""
        ...

    def path_rates(self, drop_path: float) -> torch.Tensor:
        """Drop rates of all residual branches for a recipe's ``drop_path``, float64 (paths,)."""
        ...

    def sharing_key(self) -> Hashable:
        """Tasks with an equal key share a pass through the ViT."""
        ...

    def __call__(self, images: torch.Tensor, path_scales: torch.Tensor | None, *, class_token: bool) -> Features:
        """Normalised images (B, 3, H, W) and drop-path scales (paths, B) or None -> features."""
        ...

    @staticmethod
    def forward_together(
        methods: Sequence[Any],
        images: Sequence[torch.Tensor],
        path_scales: Sequence[torch.Tensor | None],
        *,
        class_token: bool,
        stacked: bool,
    ) -> list[Features]:
        """The features of several tasks with the same `sharing_key`. Each task has its own images; all have one size.

        ``stacked`` asks the method to compute side networks of one shape as one, which is faster on a GPU.
        """
        ...


class Head(Protocol):
    """Makes a task's outputs, and answers for people, from features."""

    needs_class_token: bool
    """Whether the head uses the ViT's final class token."""
    depends_on_shapes_alone: bool
    """Whether only the shapes of its inputs decide which operations it runs. If so, a GPU's steps are recorded."""

    @classmethod
    def build(cls, spec: Mapping[str, Any], widths: Sequence[int], embed_dim: int) -> Head:
        """A fresh head.

        Args:
            spec: what `spec` returned, as plain JSON values.
            widths: channels of the pyramid's four maps.
            embed_dim: width of the ViT's class token.

        Raises:
            ValueError: an unknown field, or an impossible value.
        """
        ...

    def spec(self) -> dict[str, Any]:
        """The name in `HEADS` and the complete configuration: ``{"kind": "classification", ...}``."""
        ...

    def __call__(self, pyramid: Pyramid, class_token: torch.Tensor | None) -> Outputs:
        """Features -> outputs of the batch."""
        ...

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, torch.Tensor]:
        """Scalars by name, means over the batch. Their sum is minimised, and each is logged.

        A single loss may be called ``loss``; of several none is, since that is the name of their sum.
        """
        ...

    def decode(self, outputs: Outputs, sizes: Sequence[tuple[int, int]]) -> list[Any]:
        """One answer for each image; ``sizes`` are (width, height) of the original images, in pixels."""
        ...


def total_loss(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The scalar that is minimised: the sum of a head's losses.

    Raises:
        ValueError: there are no losses.
    """
    if not losses:
        raise ValueError("the head returned no loss; expected at least one scalar by name")
    if "loss" in losses and len(losses) > 1:
        raise ValueError(f"the head's losses are {', '.join(losses)}: the name loss is for their sum")
    first, *others = losses.values()
    for other in others:
        first = first + other
    return first
