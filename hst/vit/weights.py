"""Reads the weights of a frozen ViT: timm's download, a local file in any form that timm reads, or random numbers. The
project's own ViTs have theirs in this package, in files that ``jobs/pretrain_demo_vit.py`` makes.

Files are data, never code: safetensors, ``torch.load`` with weights_only, ``np.load`` without pickle. The pipeline
fetches ``s3://`` files beforehand.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import pickle
import re
import socket
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from timm.models import _hub as timm_hub
from timm.models import vision_transformer as timm_vit
from torch import nn

from hst.randomness import seeded
from hst.vit.wrapped_weights import unwrapped

PROJECT_VITS: dict[str, dict[str, Any]] = {
    # A small ViT for demonstrations: 1.6 M parameters, 64 px, pretrained on the project's own drawings.
    "hst_vit_micro_patch8_64": {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 8, "num_heads": 4},
}

SHIPPED = Path(__file__).resolve().parents[1] / "assets"
"""Folder with the weights of the project's ViTs."""
HUB_TIMEOUT_SECONDS = 10
CLASSIFIER_PREFIXES = ("head.", "head_dist.", "attn_pool.", "pre_logits.")


def build_vit(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the timm model ``name`` without its classifier and its attention pooling, which HST never uses.

    Raises:
        ValueError: an unknown name, or weights that timm does not have or cannot download.
    """
    if name in PROJECT_VITS:
        if pretrained:
            raise ValueError(f"backbone {name!r} has no download; its weights are {shipped_weights(name)}")
        vit: Any = timm_vit.VisionTransformer(**{**PROJECT_VITS[name], "num_classes": 0, **kwargs})
    else:
        base, _, tag = name.partition(".")
        if not timm.is_model(base):
            close = difflib.get_close_matches(base, [*timm.list_models("*vit*"), *PROJECT_VITS], n=4)
            raise ValueError(
                f"backbone {name!r}: timm {timm.__version__} has no such model; close: {', '.join(close) or 'none'}"
            )
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
            raise ValueError(f"backbone {name!r}: {base!r} has no weights tagged {tag!r}; timm has: {tags}") from error
        vit = _create(name, pretrained, **kwargs)
    if getattr(vit, "attn_pool", None) is not None:
        vit.attn_pool = None
    return vit


def shipped_weights(name: str) -> Path:
    """The file in this package with the weights of a ViT of PROJECT_VITS."""
    return SHIPPED / f"{name}.safetensors"


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    download = f"backbone {name!r}: its own download failed"
    instead = "give a weights file in its place (--backbone-weights FILE)"
    config = timm.get_pretrained_cfg(name)
    if pretrained and (config is None or not config.has_weights):
        raise ValueError(f"backbone {name!r}: timm has no weights for it; {instead}")
    if pretrained and not _is_cached(config) and not _hub_answers():
        raise ValueError(f"{download}: nobody answers at {_hub()} within {HUB_TIMEOUT_SECONDS} s; {instead}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except OSError as error:  # no connection, nothing in the cache, a full disk
        raise ValueError(f"{download} ({_first_line(error)}); {instead}") from error
    except RuntimeError as error:
        what = instead if pretrained else "choose another"
        raise ValueError(f"backbone {name!r}: timm cannot create it ({_first_line(error)}); {what}") from error


def _is_cached(config: Any) -> bool:
    """Whether loading the weights needs no hub: they are in its cache, or come from elsewhere."""
    if not config.hf_hub_id or timm_hub.hf_hub_download is None:
        return True
    repository, revision = timm_hub.hf_split(config.hf_hub_id)
    for file in (config.hf_hub_filename or "pytorch_model.bin", "model.safetensors"):
        with contextlib.suppress(OSError):
            timm_hub.hf_hub_download(repository, file, revision=revision, local_files_only=True)
            return True
    return False


def _hub_answers() -> bool:
    """Whether the hub can be reached. Its own client would retry for minutes before it reports that it cannot."""
    if os.environ.get("HF_HUB_OFFLINE") or urllib.request.getproxies().keys() - {"no"}:
        return True  # offline the client fails at once; behind a proxy a direct connection says nothing
    address = urllib.parse.urlsplit(_hub())
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def build_skeleton(name: str, state: Mapping[str, torch.Tensor] | None = None) -> Any:
    """`build_vit` on the meta device (shapes without values), with the position-embedding grid of ``state``."""
    with torch.device("meta"):
        vit = build_vit(name)
        size = _source_image_size(vit, None if state is None else state.get("pos_embed"))
        return vit if size is None else build_vit(name, img_size=size)


def _source_image_size(vit: Any, pos_embed: torch.Tensor | np.ndarray | None) -> int | None:
    """The image side that these position embeddings belong to. None for the model's own side, or if it is unknown."""
    if pos_embed is None or vit.pos_embed is None or pos_embed.shape[-2] == vit.pos_embed.shape[1]:
        return None
    patches = pos_embed.shape[-2] - (0 if vit.no_embed_class else vit.num_prefix_tokens)
    side = math.isqrt(max(patches, 0))
    return side * vit.patch_embed.patch_size[0] if side and side * side == patches else None


def read_source(name: str, weights: str | Path | None) -> dict[str, torch.Tensor]:
    """A ViT's weights in float32 with timm's names, before any resampling; see `hst.backbone.load_backbone`."""
    if weights is None and name in PROJECT_VITS:
        weights = shipped_weights(name)
    if weights is None:
        return {k: v.float() for k, v in build_vit(name, pretrained=True).state_dict().items()}
    if str(weights) == "random":
        with seeded(0, "random backbone", name):
            return {k: v.float() for k, v in build_vit(name).state_dict().items()}
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"backbone weights {path}: no such file")
    try:
        state = _read_npz(name, path) if path.suffix == ".npz" else _read_torch(name, path)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        zipfile.BadZipFile,
        EOFError,
        KeyError,
        OSError,
        ValueError,
    ) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"backbone weights {path}: not weights that can be read for {name!r}; expected .safetensors, a torch state "
            f"dict (.pth) or a JAX .npz ({_first_line(error)})"
        ) from error
    _check_complete(name, path, state)
    broken = [key for key, value in strip_classifier(state).items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"backbone weights {path}: {len(broken)} of {len(state)} tensors hold NaN or infinite values, {broken[0]} "
            f"for one; the file is damaged, or its training diverged"
        )
    return {k: v.float() for k, v in state.items()}


def _read_npz(name: str, path: Path) -> dict[str, torch.Tensor]:
    vit: Any = build_vit(name)
    with np.load(path, allow_pickle=False) as arrays:
        pos_embeds = [arrays[key] for key in arrays.files if key.rpartition("/")[2] in ("pos_embedding", "pos_embed")]
        kernels = [arrays[key].shape for key in arrays.files if f"/{key}".endswith("/embedding/kernel")]
        apart = {match[1] for key in arrays.files if (match := re.search(r"/encoderblock_(\d+)/", key))}
        stacked = [len(arrays[key]) for key in arrays.files if key.endswith("/encoderblock/LayerNorm_0/scale")]
    _check_npz(name, path, vit, kernels, stacked[0] if stacked else len(apart))
    size = _source_image_size(vit, pos_embeds[0] if pos_embeds and pos_embeds[0].ndim == 3 else None)
    if size is not None:
        vit = build_vit(name, img_size=size)
    vit.load_pretrained(str(path))
    return vit.state_dict()


def _check_npz(name: str, path: Path, vit: Any, kernels: list[tuple[int, ...]], num_blocks: int) -> None:
    """Refuse another patch size or depth: timm would resample the patches and ignore blocks that the model lacks."""
    expected = tuple(vit.patch_embed.proj.weight.permute(2, 3, 1, 0).shape)  # OIHW -> HWIO
    faults = [f"embedding/kernel is {kernel}, expected {expected}" for kernel in kernels if kernel != expected]
    if kernels and num_blocks != len(vit.blocks):
        faults.append(f"it has {num_blocks} blocks, expected {len(vit.blocks)}")
    if faults:
        raise ValueError(f"backbone weights {path} are of another ViT than {name!r}: {'; '.join(faults)}")


def _read_torch(name: str, path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        checkpoint = load_safetensors(path)
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    raw = unwrapped(checkpoint) if isinstance(checkpoint, dict) else {}
    if not raw:
        raise ValueError("it holds no tensors")
    pos_embeds = [v for k, v in raw.items() if k.rpartition(".")[2] == "pos_embed" and v.ndim == 3]
    skeleton = build_skeleton(name, {"pos_embed": pos_embeds[0]} if pos_embeds else None)
    patch_embed = raw.get("patch_embed.proj.weight")
    expected = skeleton.patch_embed.proj.weight.shape
    if patch_embed is not None and patch_embed.ndim == 4 and patch_embed.shape != expected:
        raise ValueError(
            f"backbone weights {path} are of another ViT than {name!r}: patch_embed.proj.weight is "
            f"{tuple(patch_embed.shape)}, expected {tuple(expected)}"
        )
    return timm_vit.checkpoint_filter_fn(raw, skeleton, adapt_layer_scale=True)  # DeiT 3 calls it gamma_1


def strip_classifier(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without the classifier and its pooling, which HST never uses."""
    return {k: v for k, v in state.items() if not k.startswith(CLASSIFIER_PREFIXES)}


def _check_complete(name: str, path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights whose names or shapes differ from the model's, apart from the classifier."""
    got = strip_classifier(state)
    expected = strip_classifier(build_skeleton(name, state).state_dict())
    missing = [f"{k} is missing" for k in expected if k not in got]
    unknown = [f"{k} is unknown" for k in got if k not in expected]
    other = [
        f"{k} is {tuple(got[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected
        if k in got and got[k].shape != expected[k].shape
    ]
    if missing or unknown or other:
        shown = [*missing[:2], *unknown[:2], *other[:2]]
        hidden = len(missing) + len(unknown) + len(other) - len(shown)
        more = f" and {hidden} more" if hidden else ""
        first_parts = {key.partition(".")[0] for key in got}
        more += f"; all its names begin with {first_parts.pop()!r}" if len(first_parts) == 1 else ""
        raise ValueError(f"backbone weights {path} are of another ViT than {name!r}: {'; '.join(shown)}{more}")
