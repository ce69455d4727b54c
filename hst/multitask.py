"""Samples of several tasks through one frozen ViT at once, each task with its own batch statistics and head.

What comes out equals the separate models', gradients and batch statistics too. One image for k tasks still needs k
samples: the first block's LayerNorm already differs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from hst.model import TaskModel
from hst.protocols import Outputs


def forward_tasks(
    models: Sequence[TaskModel],
    images: Sequence[torch.Tensor],
    path_scales: Sequence[torch.Tensor | None] | None = None,
    *,
    stacked: bool | None = None,
) -> list[Outputs]:
    """Outputs of several task models, each on its own images.

    Args:
        models: on one backbone object, in the mode, training or evaluation, that each has. Models with an equal
            `hst.protocols.Method.sharing_key` share a pass through the ViT; others have a pass of their own.
        images: of each model, normalised, (B, 3, H, W); one size for all that share a pass.
        path_scales: of each model, drop-path scales (paths, B) or None.
        stacked: whether side networks of one shape are computed together; None: on a GPU, where many small kernels
            take longer than a few large ones. On a CPU one after another is faster.

    Returns:
        What each model's head makes of its images, (B, classes) of a classification head. Models that share a pass
        share a graph: what is to be minimised is added up, and one backward pass made.

    Raises:
        ValueError: nothing to do, models on several backbones, or images for another number of models.
    """
    scales = [None] * len(models) if path_scales is None else list(path_scales)
    if not models or not len(models) == len(images) == len(scales):
        raise ValueError(f"{len(models)} models, {len(images)} batches of images, {len(scales)} of drop-path scales")
    backbone = models[0].backbone
    if any(model.backbone is not backbone for model in models):
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
            outputs[i] = model.head(pyramid, class_token)
    return [outputs[i] for i in range(len(models))]


def packs(models: Sequence[TaskModel], sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The models' places, those together that share a pass through the ViT."""
    found: dict[Hashable, list[int]] = {}
    for i, (model, size) in enumerate(zip(models, sizes, strict=True)):
        method = model.extractor
        key = (type(method), method.sharing_key(), size) if method.packable else i
        found.setdefault(key, []).append(i)
    return list(found.values())
