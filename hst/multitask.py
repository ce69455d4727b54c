"""Samples of several tasks through one frozen ViT at once: each sample has its task's LayerNorms and registers, and the
ViT's linears are one product for all. Behind it each task has its own side network, batch statistics and head.

On a GPU side networks of one shape, on as many images each, are computed together as well (`hst.side.stacked`).

What comes out equals the separate models', gradients and batch statistics too. One image for k tasks still needs k
samples: the first block's LayerNorm already differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hst.backbone import Backbone, BlockOutputs
from hst.model import TaskModel
from hst.side.extractor import HSTExtractor
from hst.side.stacked import SideInput, stacked_side


def forward_tasks(
    models: Sequence[TaskModel],
    images: Sequence[torch.Tensor],
    path_scales: Sequence[torch.Tensor | None] | None = None,
    *,
    stacked: bool | None = None,
) -> list[torch.Tensor]:
    """Logits of several task models, each on its own images.

    Args:
        models: on one backbone object, in the mode, training or evaluation, that each has. Models share a pass through
            the ViT where they tap the same blocks with as many registers; others have a pass of their own.
        images: of each model, normalised, (B, 3, H, W); one size for all that share a pass.
        path_scales: of each model, drop-path scales (paths, B) or None.
        stacked: whether side networks of one shape are computed together; None: on a GPU, where many small kernels
            take longer than a few large ones. On a CPU one after another is faster.

    Returns:
        For each model (B, classes). Models that share a pass share a graph: what is to be minimised is added up, and
        one backward pass made.

    Raises:
        ValueError: nothing to do, models on several backbones, or images for another number of models.
    """
    scales = [None] * len(models) if path_scales is None else list(path_scales)
    if not models or not len(models) == len(images) == len(scales):
        raise ValueError(f"{len(models)} models, {len(images)} batches of images, {len(scales)} of drop-path scales")
    backbone = models[0].backbone
    if any(model.backbone is not backbone for model in models):
        raise ValueError("the models are on several backbones; expected one object that all of them share")
    logits: list[torch.Tensor | None] = [None] * len(models)
    for pack in packs(models, [tuple(batch.shape[-2:]) for batch in images]):
        found = _one_pass(
            backbone,
            [models[i] for i in pack],
            [images[i] for i in pack],
            [scales[i] for i in pack],
            images[0].device.type == "cuda" if stacked is None else stacked,
        )
        for i, one in zip(pack, found, strict=True):
            logits[i] = one
    return [one for one in logits if one is not None]


def packs(models: Sequence[TaskModel], sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The models' places, those together that share a pass through the ViT."""
    found: dict[tuple[object, ...], list[int]] = {}
    for i, (model, size) in enumerate(zip(models, sizes, strict=True)):
        key = (model.extractor.taps, model.hsn.num_registers, model.extractor.memory == "memory", *size)
        found.setdefault(key, []).append(i)
    return list(found.values())


def _one_pass(
    backbone: Backbone,
    models: Sequence[TaskModel],
    images: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor | None],
    stacked: bool,
) -> list[torch.Tensor]:
    counts = [len(batch) for batch in images]
    together = _Together([model.extractor for model in models], counts, images[0].device)
    with_class_token = any(model.head_input == "side+cls" for model in models)
    split = 2 * backbone.depth
    vit = backbone(
        torch.cat(list(images)),
        taps=models[0].extractor.taps,
        registers=together.registers if models[0].extractor.meta_register is not None else None,
        norms=together.norms,
        path_scales=_joined([None if own is None else own[:split] for own in scales], counts, split, images[0].device),
        class_token=with_class_token,
        recompute=models[0].extractor.memory == "memory",
    )
    tokens = {tap: value.split(counts) for tap, value in vit.tokens.items()}
    class_tokens = [None] * len(models) if vit.class_token is None else vit.class_token.split(counts)
    pyramids: dict[int, list[torch.Tensor]] = {}
    for places in _alike(models, counts) if stacked else [[i] for i in range(len(models))]:
        inputs = [
            SideInput(
                images[i],
                BlockOutputs({tap: parts[i] for tap, parts in tokens.items()}, vit.grid, vit.num_prefix_tokens, None),
                None if (scale := scales[i]) is None else scale[split:],
            )
            for i in places
        ]
        extractors = [models[i].extractor for i in places]
        if len(places) == 1:
            recompute = extractors[0].memory != "speed"
            pyramids[places[0]] = extractors[0].side(*inputs[0], recompute=recompute)
        else:
            pyramids.update(zip(places, stacked_side([one.side for one in extractors], inputs), strict=True))
    return [model.head(pyramids[i], class_tokens[i]) for i, model in enumerate(models)]


def _alike(models: Sequence[TaskModel], counts: Sequence[int]) -> list[list[int]]:
    """The models' places, those together whose side networks are of one shape, on as many images, in mode ``speed``."""
    found: dict[object, list[int]] = {}
    for i, (model, count) in enumerate(zip(models, counts, strict=True)):
        alone = model.extractor.memory != "speed"
        found.setdefault(i if alone else (model.hsn, count, model.training), []).append(i)
    return list(found.values())


def _joined(
    scales: Sequence[torch.Tensor | None], counts: Sequence[int], paths: int, device: torch.device
) -> torch.Tensor | None:
    """Drop-path scales of all samples (paths, B); a task without any keeps every branch."""
    if all(own is None for own in scales):
        return None
    kept = [
        torch.ones(paths, count, device=device) if own is None else own
        for own, count in zip(scales, counts, strict=True)
    ]
    return torch.cat(kept, dim=1)


@dataclass(frozen=True)
class _SampleNorm:
    """A LayerNorm of which each sample has its own weight and bias (B, D)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        normed = F.layer_norm(x, x.shape[-1:], None, None, self.eps)
        return torch.addcmul(self.bias[:, None], normed, self.weight[:, None])


class _Together:
    """What several tasks tune inside the ViT, sample by sample."""

    def __init__(self, extractors: Sequence[HSTExtractor], counts: Sequence[int], device: torch.device) -> None:
        self._extractors = extractors
        # Each sample's task. Made where it is used: a copy from the host would have to be waited for.
        self._tasks = torch.cat([torch.full((count,), i, device=device) for i, count in enumerate(counts)])
        self._norms = [
            one.backbone.block_norms().__getitem__ if one.block_norms is None else one.block_norms for one in extractors
        ]

    def registers(self, block: int) -> torch.Tensor | None:
        """(B, M, D), or None where the block is not tapped."""
        own = [one.meta_register(block) for one in self._extractors if one.meta_register is not None]
        present = [tokens for tokens in own if tokens is not None]
        return torch.cat(present)[self._tasks] if present else None

    def norms(self, block: int) -> tuple[_SampleNorm, _SampleNorm]:
        """The two of a block."""
        pairs = [norms(block) for norms in self._norms]
        first, second = (
            _SampleNorm(
                torch.stack([pair[half].weight for pair in pairs])[self._tasks],
                torch.stack([pair[half].bias for pair in pairs])[self._tasks],
                pairs[0][half].eps,
            )
            for half in (0, 1)
        )
        return first, second
