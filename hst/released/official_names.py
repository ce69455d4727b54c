"""Pairs the names of the paper's released code (``ViT_HSN``) with ours, for `hst.released.interop`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hst.config import HSNConfig

AFFINE = ("weight", "bias")
BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def task_names(config: HSNConfig) -> Iterator[tuple[str, str]]:
    """(released, ours) for every tensor that a task owns. ``config`` is resolved, with a side block per ViT block."""
    assert config.depths is not None
    for i in range(sum(config.depths)):
        for norm in ("norm1", "norm2"):
            for part in AFFINE:
                yield f"blocks.{i}.{norm}.{part}", f"extractor.block_norms.{norm}.{i}.{part}"
        if config.num_registers:
            yield f"m_embeddings.{i}", f"extractor.meta_register.tokens.{i}"
    for there, here, parts in _side_layers(config):
        for part in parts:
            yield f"{there}.{part}", f"extractor.side.stages.{here}.{part}"
    for part in BATCH_STATISTICS:
        yield f"fc_norm.{part}", f"head.norm.{part}"
    for part in AFFINE:
        yield f"head.{part}", f"head.linear.{part}"


def _side_layers(config: HSNConfig) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(released, ours below ``extractor.side.stages``, its tensors) for every layer of the side network."""
    assert config.depths is not None
    yield "m_patch_embed1.conv.0", "0.embed.conv1", ("weight",)
    yield "m_patch_embed1.conv.1", "0.embed.batch_norm", (*AFFINE, *BATCH_STATISTICS)
    yield "m_patch_embed1.conv.3", "0.embed.conv2", AFFINE
    yield "m_patch_embed1.norm", "0.embed.norm", AFFINE
    first = 1  # ViT blocks are counted from 1 in m_proj_norm
    for s, depth in enumerate(config.depths):
        if s:
            yield f"m_patch_embed{s + 1}.proj", f"{s}.embed.conv", AFFINE
            yield f"m_patch_embed{s + 1}.norm", f"{s}.embed.norm", AFFINE
        yield f"T_Bridge_{s + 1}", f"{s}.bridge.proj.0", AFFINE
        for j in range(depth):
            if config.num_registers:
                yield f"m_proj_norm{first + j}", f"{s}.bridge.register_norm.{j}", AFFINE
            for layer in ("norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2"):
                yield f"m_block{s + 1}.{j}.{layer}", f"{s}.blocks.{j}.{layer}", AFFINE
            yield f"m_block{s + 1}.{j}.mlp.fc1", f"{s}.blocks.{j}.mlp.0", AFFINE
            yield f"m_block{s + 1}.{j}.mlp.fc2", f"{s}.blocks.{j}.mlp.2", AFFINE
        yield f"m_norm{s + 1}", f"{s}.norm", AFFINE
        first += depth


def unused_without_registers(config: HSNConfig, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of tensors that the released code keeps but does not use without registers (``metaG_num=0``)."""
    assert config.depths is not None
    if config.num_registers:
        return {}
    widths = [width for width, depth in zip(config.widths, config.depths, strict=True) for _ in range(depth)]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, width in enumerate(widths):
        shapes[f"m_embeddings.{i}"] = (1, 0, embed_dim)
        shapes |= {f"m_proj_norm{i + 1}.{part}": (width,) for part in AFFINE}
    return shapes


def is_block_norm(name: str) -> bool:
    """Whether the task tunes this tensor of a ViT."""
    return re.match(r"blocks\.\d+\.norm[12]\.", name) is not None
