"""Finds out whether HST can run beside a ViT of timm: it can if it computes the same tokens as timm.

Both run a small copy of the ViT. Its weights are random, because trained ones may hide a difference (for example behind
a layer scale of nearly 0), and because no file has to be read for them. One block of each kind and an image of 2 x 3
patches are enough, so that the run takes about a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hst.randomness import generator
from hst.vit.weights import build_vit

GRID = (2, 3)
"""Patches of the dry run's image. A square would hide that height and width are swapped."""
TOLERANCE = 1e-3
"""What rounding may change in tokens, whose values are about 1."""


def check_runs_as_in_timm(name: str, beside: Callable[[nn.Module], Any]) -> None:
    """Compare the tokens before and after the blocks of the ViT ``name``.

    Args:
        name: timm's name, or one of `hst.vit.weights.PROJECT_VITS`.
        beside: a ViT -> its `hst.backbone.Backbone`.

    Raises:
        ValueError: timm has no such model, or HST cannot run beside it. The message names the part that differs.
    """
    with torch.device("meta"):
        vit: Any = build_vit(name)
    kind = type(vit).__name__
    differs = f"a {kind} is not supported"
    try:
        small = _small(vit)
        backbone = beside(small)
        differs = f"a {kind} that makes its tokens by a {type(vit.patch_embed).__name__} is not supported"
        images, before, after = _run_by_timm(small)
        tokens, grid = backbone.embed(images)
        _check_equal(tokens, before)
        if grid != GRID:
            raise ValueError(f"{grid} patches of an image of {GRID}")
        differs = f"blocks of type {_block_type(small.blocks[0])} are not supported"
        norms = [(_as_a_task(norm1), _as_a_task(norm2)) for norm1, norm2 in backbone.block_norms()]
        with torch.no_grad():
            out = backbone(images, taps={backbone.depth - 1}, norms=norms.__getitem__)
        _check_equal(out.tokens[backbone.depth - 1], after)
    except Exception as error:  # every other kind of model fails in its own way
        raise ValueError(
            f"backbone {name!r}: {differs}; HST runs beside timm's VisionTransformer with plain pre-norm blocks"
        ) from error


def _small(vit: Any) -> Any:
    """The ViT on the CPU with one block of each kind, for images of GRID patches, with random weights."""
    vit.blocks = nn.Sequential(*{str(block): block for block in vit.blocks}.values())
    vit = vit.to_empty(device="cpu").eval()
    draws = generator(0, "dry run")
    with torch.no_grad():
        for weight in (*vit.parameters(), *vit.buffers()):
            if weight.is_floating_point():
                weight.uniform_(*_bounds(weight), generator=draws)
    return vit


def _bounds(weight: torch.Tensor) -> tuple[float, float]:
    """Bounds of random weights with which every part of a ViT matters."""
    if weight.dim() in (2, 4):  # a matrix or a kernel keeps the size of what it multiplies
        bound = (3 / weight[0].numel()) ** 0.5
        return -bound, bound
    return (0.5, 1.5) if weight.dim() < 2 else (-1.0, 1.0)


@torch.no_grad()
def _run_by_timm(vit: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random image (1, 3, H, W) of GRID patches, and timm's tokens (1, P + h*w, D) before and after the blocks."""
    size = tuple(side * patch for side, patch in zip(GRID, vit.patch_embed.patch_size, strict=True))
    vit.set_input_size(img_size=size)
    images = torch.randn(1, 3, *size, generator=generator(0, "dry run", "image"))
    tokens: dict[str, torch.Tensor] = {}
    hooks = (
        vit.blocks[0].register_forward_pre_hook(lambda _, args: tokens.update(before=args[0])),
        vit.blocks[-1].register_forward_hook(lambda _, args, output: tokens.update(after=output)),
    )
    vit.forward_features(images)
    for hook in hooks:
        hook.remove()
    return images, tokens["before"], tokens["after"]


def _as_a_task(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The norm as a task tunes it: a LayerNorm with the same weight and bias (`hst.side.meta_register`)."""
    own = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    own.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return own


def _block_type(block: nn.Module) -> str:
    parts = dict.fromkeys(type(part).__name__ for part in block.children())
    return f"{type(block).__name__} ({', '.join(parts)})"


def _check_equal(ours: torch.Tensor, timms: torch.Tensor) -> None:
    torch.testing.assert_close(ours, timms, rtol=TOLERANCE, atol=TOLERANCE)
