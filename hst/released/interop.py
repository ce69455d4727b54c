"""Converts checkpoints of the paper's released code (github.com/AFeng-x/HST, ``ViT_HSN``) to task models and back, bit
for bit.

A released checkpoint holds the side network and the whole ViT with its tuned block norms. A task model holds only what
the task owns, and runs on a frozen `Backbone`. `hst.released.official_names` pairs the names of both codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hst.backbone import Backbone, backbone_identity
from hst.config import NUM_STAGES, HSNConfig
from hst.heads.classification import ClassificationHead
from hst.model import TaskModel, build_classifier
from hst.released.official_names import is_block_norm, task_names, unused_without_registers
from hst.side.extractor import HSTExtractor

NOT_RELEASED = "not a state dict of the released code"
MAX_FAULTS_SHOWN = 20


def model_from_official(
    state_dict: Mapping[str, Any],
    *,
    image_size: int,
    vit_num_heads: int,
    side_num_heads: Sequence[int],
    backbone: Backbone | None = None,
) -> TaskModel:
    """The task model whose ``predict`` gives the released model's logits, in the dtype of its weights.

    Args:
        state_dict: the state dict of ``ViT_HSN``, or a training checkpoint that contains it (as ``model`` or
            ``state_dict``, with or without ``module.`` in front of all names). float64 stays float64; shorter types
            become float32.
        image_size: side of the training images in pixels; the released code fixes the position embeddings to it.
        vit_num_heads: attention heads of a ViT block. The shapes do not show them.
        side_num_heads: cross-attention heads of the four stages (``m_c_num_heads``).
        backbone: the frozen ViT that the model was trained on. The frozen weights must be bit-equal to it; the model
            then runs on it, and its light checkpoint keeps the ViT's identity. Without it, a backbone named
            ``official`` is built from the state dict. That one has an identity of its own, because the state dict lacks
            the original block norms.

    Returns:
        The model in evaluation mode; it shares no memory with ``state_dict``.

    Raises:
        ValueError: tensors are missing, unknown or of another shape (all in one error), a stage has fewer side blocks
            than ViT blocks, heads do not divide a width, or the frozen weights are not the backbone's.
    """
    state = _unwrap(state_dict)
    num_blocks, config = _read_config(state, side_num_heads)
    _check_stages(state, num_blocks, config)
    with torch.device("meta"):
        vit = _build_vit(state, num_blocks, image_size=image_size, num_heads=vit_num_heads)
        shapes = build_classifier(Backbone("official", vit, ""), config, num_classes=len(state["head.weight"]))
    _check_tensors(state, _released_shapes(shapes, config), image_size)
    if backbone is None:
        vit.load_state_dict({k: state[k].clone() for k in vit.state_dict()}, strict=True, assign=True)
        backbone = Backbone("official", vit, backbone_identity(vit.state_dict()))
    else:
        _check_same_vit(state, vit, backbone, image_size=image_size, num_heads=vit_num_heads)
    model = build_classifier(backbone, config, num_classes=len(state["head.weight"]))
    tuned = {here: state[there].clone() for there, here in task_names(config)}
    model.load_state_dict(tuned, strict=True, assign=True)
    return model.eval()


def official_state_dict(model: TaskModel, *, image_size: int | None = None) -> dict[str, torch.Tensor]:
    """The state dict for the released code's ``load_state_dict``, where the task's norms replace the frozen ones.

    Args:
        model: the task model to convert.
        image_size: side in pixels that the released model is built for. The position embeddings are resampled to its
            grid, as in forward here. None for the ViT's own grid.

    Raises:
        ValueError: the model has something that the released code lacks: an ablation switch, a head on the class token,
            fewer side blocks than ViT blocks, a ViT with register tokens, layer scale or other norms. The message
            names it.
    """
    extractor, head, backbone = model.extractor, model.head, model.backbone
    if not isinstance(extractor, HSTExtractor) or not isinstance(head, ClassificationHead):
        raise ValueError(
            f"the released code has no counterpart of method {extractor.spec()['name']!r} with head "
            f"{head.spec()['kind']!r}; it has HST with a classification head"
        )
    config = extractor.config
    assert config.depths is not None
    switches = ("share_bridge", "use_global_token", "fine_grained_injection")
    faults = [f"{name}=False" for name in switches if not getattr(config, name)]
    if head.needs_class_token:
        faults.append(f"head_input={head.spec()['input']!r}")
    if sum(config.depths) != backbone.depth:
        faults.append(f"depths={config.depths} beside {backbone.depth} ViT blocks (it needs as many)")
    faults += _vit_faults(backbone)
    if faults:
        raise ValueError(f"the released code has no counterpart of {'; '.join(faults)}")
    state = dict(backbone.vit.state_dict())
    if image_size is not None:
        state["pos_embed"] = _pos_embed(backbone, image_size)
    tuned = model.state_dict()
    state |= {there: tuned[here] for there, here in task_names(config) if here in tuned}  # norms may be left untuned
    for name, shape in unused_without_registers(config, backbone.embed_dim).items():
        state[name] = state["norm.weight"].new_full(shape, 0.0 if name.endswith("bias") else 1.0)
    return {name: value.detach().clone() for name, value in state.items()}


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict inside a training checkpoint, without ``module.``, in float32, or float64 if it has any."""
    nested = (state_dict.get(key) for key in ("model", "state_dict"))
    inner = next((value for value in nested if isinstance(value, Mapping)), state_dict)
    if others := [key for key, value in inner.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{NOT_RELEASED}: {_some([f'{key} is no tensor' for key in others])}")
    if all(key.startswith("module.") for key in inner):
        inner = {key.removeprefix("module."): value for key, value in inner.items()}
    is_double = any(value.dtype == torch.float64 for value in inner.values())
    dtype = torch.float64 if is_double else torch.float32
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inner.items()}


def _read_config(state: Mapping[str, torch.Tensor], side_num_heads: Sequence[int]) -> tuple[int, HSNConfig]:
    """The number of ViT blocks and the side network's configuration, read from names and shapes."""
    stages = range(1, NUM_STAGES + 1)
    num_blocks = _count(state, "blocks")
    needed = {"patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2, "m_embeddings.0": 3, "head.weight": 2}
    needed |= {f"T_Bridge_{s}.weight": 2 for s in stages} | {f"m_block{s}.0.mlp.fc1.weight": 2 for s in stages}
    needed |= {f"m_proj_norm{i + 1}.weight": 1 for i in range(num_blocks)}
    faults = [f"{key} is missing" for key in needed if key not in state]
    faults += [
        f"{key} is {tuple(state[key].shape)}, expected {dims} dimensions"
        for key, dims in needed.items()
        if key in state and state[key].dim() != dims
    ]
    if faults:
        raise ValueError(f"{NOT_RELEASED}: {_some(faults)}")
    widths = tuple(len(state[f"T_Bridge_{s}.weight"]) for s in stages)
    hidden = tuple(len(state[f"m_block{s}.0.mlp.fc1.weight"]) for s in stages)
    return num_blocks, HSNConfig(
        widths=widths,
        num_heads=tuple(side_num_heads),
        depths=tuple(_count(state, f"m_block{s}") for s in stages),
        mlp_ratio=_mlp_ratio(widths, hidden),
        num_registers=state["m_embeddings.0"].shape[1],
    )


def _count(state: Mapping[str, torch.Tensor], modules: str) -> int:
    """Length of a module list, from its highest index."""
    numbers = [int(match[1]) for key in state if (match := re.match(rf"{modules}\.(\d+)\.", key))]
    return 1 + max(numbers, default=-1)


def _mlp_ratio(widths: Sequence[int], hidden: Sequence[int]) -> float:
    """A ratio r with int(width * r) == hidden for all. If there is none, `_check_tensors` names the difference."""
    ratios = [h / w for w, h in zip(widths, hidden, strict=True)]
    candidates = [*ratios, *(r + 1e-9 for r in ratios)]  # int() rounds down: 4.9999999 must not become 4
    fits = (r for r in candidates if all(int(w * r) == h for w, h in zip(widths, hidden, strict=True)))
    return next(fits, ratios[0])


def _check_stages(state: Mapping[str, torch.Tensor], num_blocks: int, config: HSNConfig) -> None:
    """Every stage must have a side block for each of its ViT blocks.

    The state dict does not say how the ViT is split (``block_indices``), but the ``m_proj_norm`` of a ViT block has the
    width of its stage. Stages of equal width need no distinction: the released code fails if a stage has more side
    blocks than ViT blocks, so equal totals mean equal numbers in each stage.
    """
    assert config.depths is not None
    fed = [len(state[f"m_proj_norm{i + 1}.weight"]) for i in range(num_blocks)]
    paired = [width for width, depth in zip(config.widths, config.depths, strict=True) for _ in range(depth)]
    if fed != paired:
        raise ValueError(
            f"the state dict has {config.depths} side blocks in its stages of widths {config.widths}, while its "
            f"{num_blocks} ViT blocks go to stages of widths {fed}; expected one side block for each ViT block: with "
            f"fewer, the released code reads the first ViT blocks of a stage, and an HSN here the last of equal shares"
        )


def _build_vit(state: Mapping[str, torch.Tensor], num_blocks: int, *, image_size: int, num_heads: int) -> nn.Module:
    """Build the released code's ViT. Its class token, eps 1e-6 and exact GELU are timm's defaults."""
    embed_dim, patch_size = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"vit_num_heads={num_heads}: does not divide the ViT's width {embed_dim}")
    if image_size < patch_size:
        raise ValueError(f"image_size={image_size}: smaller than one patch of {patch_size} pixels")
    vit: nn.Module = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=num_blocks,
        num_heads=num_heads,
        mlp_ratio=_mlp_ratio([embed_dim], [len(state["blocks.0.mlp.fc1.weight"])]),
        num_classes=0,
    )
    return vit


def _released_shapes(model: TaskModel, config: HSNConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape, for the released code's state dict of this model."""
    shapes = {key: tuple(value.shape) for key, value in model.backbone.vit.state_dict().items()}
    ours = model.state_dict()
    shapes |= {there: tuple(ours[here].shape) for there, here in task_names(config)}
    return shapes | unused_without_registers(config, model.backbone.embed_dim)


def _check_tensors(state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], image_size: int) -> None:
    faults = [f"{key} is missing" for key in shapes if key not in state]
    faults += [f"{key} is unknown" for key in state if key not in shapes]
    faults += [
        f"{key} is {tuple(state[key].shape)}, expected {shape}"
        + (f" for images of {image_size} pixels" if key == "pos_embed" else "")
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if faults:
        raise ValueError(f"{NOT_RELEASED}: {_some(faults)}")


def _check_same_vit(
    state: Mapping[str, torch.Tensor], vit: nn.Module, backbone: Backbone, *, image_size: int, num_heads: int
) -> None:
    """Refuse frozen weights that are not bit-equal to the backbone's, with position embeddings for this image size."""
    if faults := _vit_faults(backbone):
        raise ValueError(f"backbone {backbone.name!r}: the released code has no counterpart of {'; '.join(faults)}")
    if backbone.vit.blocks[0].attn.num_heads != num_heads:
        raise ValueError(
            f"vit_num_heads={num_heads}: backbone {backbone.name!r} has {backbone.vit.blocks[0].attn.num_heads} heads"
        )
    frozen = dict(backbone.vit.state_dict())
    if state["patch_embed.proj.weight"].shape == frozen["patch_embed.proj.weight"].shape:
        frozen["pos_embed"] = _pos_embed(backbone, image_size)
    names = [key for key in (vit.state_dict() | frozen) if not is_block_norm(key)]
    differ = [key for key in names if key not in frozen or key not in state or not _bit_equal(state[key], frozen[key])]
    if differ:
        raise ValueError(
            f"backbone {backbone.name!r} is not the ViT of this state dict: {len(differ)} frozen tensors differ from "
            f"its own: {_some(differ)}"
        )


def _bit_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())


def _pos_embed(backbone: Backbone, image_size: int) -> torch.Tensor:
    side = image_size // backbone.patch_size
    pos_embed = backbone.pos_embed((side, side))
    assert pos_embed is not None  # `_vit_faults` refuses a ViT without it
    return pos_embed


def _vit_faults(backbone: Backbone) -> list[str]:
    """How this ViT differs from the released code's."""
    vit = backbone.vit
    norms = [vit.norm, *(norm for pair in backbone.block_norms() for norm in pair)]
    with torch.device("meta"):
        plain = VisionTransformer(img_size=16, embed_dim=8, depth=backbone.depth, num_heads=1, num_classes=0)
    names, known = set(vit.state_dict()), set(plain.state_dict())
    faults = [f"the ViT's {key}" for key in sorted(names - known)]
    faults += [f"a ViT without {key}" for key in sorted(known - names)]
    if vit.no_embed_class:
        faults.append("a ViT whose class token has no position embedding")
    if any(isinstance(norm, nn.LayerNorm) and norm.eps != 1e-6 for norm in norms):
        faults.append("a ViT with LayerNorms of another eps than 1e-6")
    acts = [block.mlp.act for block in vit.blocks]
    if any(not isinstance(act, nn.GELU) or getattr(act, "approximate", "none") != "none" for act in acts):
        faults.append("a ViT with another activation than the exact GELU")
    return faults if len(faults) <= MAX_FAULTS_SHOWN else [_some(faults)]


def _some(faults: Sequence[str]) -> str:
    more = f" and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
    return "; ".join(faults[:MAX_FAULTS_SHOWN]) + more
