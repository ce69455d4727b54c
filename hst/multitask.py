"""Computes samples of several tasks in one pass through a frozen ViT, each with its task's batch statistics and head.

Outputs, gradients and batch statistics equal those of the separate models. One image for k tasks still needs k samples,
because the first block's LayerNorm already differs between tasks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from hst.model import TaskModel, check_images
from hst.protocols import Outputs


def forward_tasks(
    models: Sequence[TaskModel],
    images: Sequence[torch.Tensor],
    path_scales: Sequence[torch.Tensor | None] | None = None,
    *,
    stacked: bool | None = None,
) -> list[Outputs]:
    """The outputs of several task models, each on its own images.

    Args:
        models: Models on one backbone object; each is computed in its own mode, training or evaluation. Models with an
            equal `hst.protocols.Method.sharing_key` and images of one size share a pass through the ViT.
        images: Normalised images of each model, (B, 3, H, W).
        path_scales: Drop-path scales of each model, (paths, B) or None.
        stacked: Whether side networks of one shape are computed together. None means on a GPU only: there many small
            kernels take longer than a few large ones, while on a CPU one network after another is faster.

    Returns:
        The outputs of each model's head, (B, classes) for a classification head. Models that share a pass share a
        graph: add up the losses and make one backward pass.

    Raises:
        ValueError: There are no models, they have several backbones, images and models differ in number, or
            images are of another shape or type.
    """
    scales = [None] * len(models) if path_scales is None else list(path_scales)
    if not models or not len(models) == len(images) == len(scales):
        raise ValueError(f"{len(models)} models, {len(images)} batches of images, {len(scales)} of drop-path scales")
    for batch in images:
        check_images(batch)
    backbone = models[0].backbone
    if any(model.extractor.packable and model.backbone is not backbone for model in models):
        raise ValueError("the models are on several backbones; expected one object that all of them share")
    outputs: dict[int, Outputs] = {}
    for places in packs(models, [tuple(batch.shape[-2:]) for batch in images]):
        group = [models[i] for i in places]
        if not group[0].extractor.packable:
            (i,) = places
            outputs[i] = models[i].outputs(images[i], scales[i])
            continue
        features = group[0].extractor.forward_together(
            [model.extractor for model in group],
            [images[i] for i in places],
            [scales[i] for i in places],
            class_token=any(model.head.needs_class_token for model in group),
            stacked=images[0].device.type == "cuda" if stacked is None else stacked,
        )
        for i, model, (pyramid, class_token) in zip(places, group, features, strict=True):
            outputs[i] = model.head(pyramid, class_token if model.head.needs_class_token else None)
    return [outputs[i] for i in range(len(models))]


def packs(models: Sequence[TaskModel], sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Groups the indices of models that can share a pass through the ViT."""
    found: dict[Hashable, list[int]] = {}
    for i, (model, size) in enumerate(zip(models, sizes, strict=True)):
        method = model.extractor
        key = (type(method), method.sharing_key(), size) if method.packable else i
        found.setdefault(key, []).append(i)
    return list(found.values())
