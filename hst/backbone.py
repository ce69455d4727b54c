"""One frozen timm Vision Transformer: load it, fingerprint it, run it with a task's registers and LayerNorms.

The backbone holds no task state and has no trainable parameter, so many task models share one object. A task passes
what it tunes inside the ViT to `Backbone.forward`.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from hst import plain
from hst.layers.autocast import product_dtype
from hst.layers.drop_path import add_branch
from hst.vit.dry_run import check_runs_as_in_timm
from hst.vit.frozen_block import FrozenBlock, Norm
from hst.vit.weights import build_skeleton, read_source, strip_classifier


@dataclass(frozen=True)
class BlockOutputs:
    """The outputs of the tapped ViT blocks: the residual stream after each block, without any norm."""

    tokens: Mapping[int, torch.Tensor]
    """Tapped block -> registers, prefix tokens, patches: (B, M + P + h*w, embed_dim); M is 0 without registers."""
    grid: tuple[int, int]
    """(h, w) of the patches."""
    num_prefix_tokens: int
    """P: class and register tokens of the ViT itself."""
    class_token: torch.Tensor | None
    """The ViT's final class token after the ViT's own last norm, (B, embed_dim), if requested."""


class Backbone(nn.Module):
    """A frozen timm ``VisionTransformer`` of any grid, with 0 to n prefix tokens. Always in evaluation mode."""

    def __init__(self, name: str, vit: nn.Module, identity: str) -> None:
        super().__init__()
        self.name = name
        self.identity = identity
        self.vit: Any
        self.vit = vit.requires_grad_(False)
        self.embed_dim: int = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.has_class_token: bool = self.vit.has_class_token
        self._pos_embeds: dict[tuple[Any, ...], torch.Tensor] = {}
        self._frozen_blocks: dict[tuple[int, torch.dtype], FrozenBlock | None] = {}
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode. A frozen ViT needs no training mode: drop-path comes as the task's scales."""
        return super().train(False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._pos_embeds.clear()  # the resampled embeddings are on the old device, or in the old type
        self._frozen_blocks.clear()
        return super()._apply(fn, recurse)

    def block_norms(self) -> list[tuple[nn.LayerNorm, nn.LayerNorm]]:
        """norm1 and norm2 of every block, to be cloned, never to be trained."""
        return [(block.norm1, block.norm2) for block in self.vit.blocks]

    def forward(
        self,
        images: torch.Tensor,
        *,
        taps: Collection[int],
        registers: Callable[[int], torch.Tensor | None] | None = None,
        norms: Callable[[int], tuple[Norm, Norm]] | None = None,
        path_scales: torch.Tensor | None = None,
        class_token: bool = False,
        recompute: bool = False,
        tapped: Callable[[int], None] | None = None,
    ) -> BlockOutputs:
        """Run all blocks.

        Args:
            images: normalised, (B, 3, H, W), at least one patch a side. The ViT does not see the pixels at the right
                and lower edge that fill no whole patch.
            taps: blocks whose outputs are kept.
            registers: block -> its registers (1, M, embed_dim), or each sample's own (B, M, embed_dim), or None. A
                block's registers go before [prefix, patches], and are removed after it. They have no position
                embedding.
            norms: block -> the LayerNorms that replace the ViT's.
            path_scales: drop-path scales of the branches (2 * depth, B), or None.
            class_token: whether to return the final class token too.
            recompute: see `hst.vit.frozen_block.FrozenBlock.forward`.
            tapped: called with each tapped block after its output.
        """
        x, grid = self.embed(images)
        tokens: dict[int, torch.Tensor] = {}
        dtype = product_dtype(x)
        in_front = 0
        """Number of registers of the previous block, at the beginning of x."""
        for i, block in enumerate(self.vit.blocks):
            own = None if registers is None else registers(i)
            frozen = self._frozen_block(i, dtype)
            replaced = frozen is not None and own is not None and own.shape[1] == in_front
            if not replaced:
                x = x[:, in_front:]
                if own is not None:
                    x = torch.cat([own.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
            in_front = 0 if own is None else own.shape[1]
            norm1, norm2 = (block.norm1, block.norm2) if norms is None else norms(i)
            scale1, scale2 = (None, None) if path_scales is None else path_scales[2 * i : 2 * i + 2]
            if frozen is not None:
                x = frozen.forward(x, (norm1, norm2), own if replaced else None, (scale1, scale2), recompute=recompute)
            else:
                x = add_branch(x, block.ls1(block.attn(norm1(x))), scale1)
                x = add_branch(x, block.ls2(block.mlp(norm2(x))), scale2)
            if i in taps:
                tokens[i] = x
                if tapped is not None:
                    tapped(i)
        x = x[:, in_front:]
        final = None
        if class_token:
            norm = self.vit.fc_norm if isinstance(self.vit.norm, nn.Identity) else self.vit.norm
            final = norm(x[:, 0])
        return BlockOutputs(tokens, grid, self.vit.num_prefix_tokens, final)

    def _frozen_block(self, i: int, dtype: torch.dtype) -> FrozenBlock | None:
        """Block i with its weights in ``dtype``, made once. None if timm's own block must run.

        A later change of the weights is noticed only if this module's ``to`` makes it. The weights are frozen.
        """
        if plain.is_on() or torch.compiler.is_compiling():
            return None
        key = (i, dtype)
        if key not in self._frozen_blocks:
            with torch.inference_mode(False):  # training may use the cached weights later
                self._frozen_blocks[key] = FrozenBlock.of(self.vit.blocks[i], dtype)
        return self._frozen_blocks[key]

    @property
    def copied_bytes(self) -> int:
        """Bytes of weights that are kept in another type, in addition to the ViT's own."""
        own = {weight.data_ptr() for weight in self.vit.parameters()}
        blocks = [block for block in self._frozen_blocks.values() if block is not None]
        return sum(weight.nbytes for block in blocks for weight in block.weights() if weight.data_ptr() not in own)

    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Images (B, 3, H, W) -> prefix and patch tokens with their positions (B, P + h*w, embed_dim), and (h, w)."""
        if min(images.shape[-2:]) < self.patch_size:
            raise ValueError(
                f"images of {tuple(images.shape[-2:])} pixels are smaller than one patch of {self.patch_size}"
            )
        x = self.vit.patch_embed.proj(images)
        grid = (x.shape[2], x.shape[3])
        x = self.vit.patch_embed.norm(x.flatten(2).transpose(1, 2))  # NCHW -> NLC
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.vit.cls_token, self.vit.reg_token) if t is not None]
        pos_embed = self.pos_embed(grid)
        if pos_embed is not None and self.vit.no_embed_class:
            x = x + pos_embed
        x = torch.cat([*(p.to(x.dtype) for p in prefix), x], dim=1) if prefix else x
        if pos_embed is not None and not self.vit.no_embed_class:
            x = x + pos_embed
        return self.vit.norm_pre(x), grid

    def pos_embed(self, grid: tuple[int, int]) -> torch.Tensor | None:
        """The position embeddings for a grid, resampled as timm does. Results are cached."""
        source = self.vit.pos_embed
        if source is None or grid == tuple(self.vit.patch_embed.grid_size):
            return source
        key = (grid, source.device, source.dtype)
        if key in self._pos_embeds:
            return self._pos_embeds[key]
        num_prefix = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        old = list(self.vit.patch_embed.grid_size)
        found = resample_abs_pos_embed(source, new_size=list(grid), old_size=old, num_prefix_tokens=num_prefix)
        if not torch.compiler.is_compiling():  # a tensor made while a graph is traced belongs to the trace
            self._pos_embeds[key] = found
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by name in float32, to share between processes or to store. `from_arrays` is the inverse."""
        return {k: v.detach().float().cpu().numpy() for k, v in self.vit.state_dict().items()}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, np.ndarray], identity: str) -> Backbone:
        """A backbone that uses the given memory without a copy. Nothing may write to that memory."""
        with warnings.catch_warnings():
            # Ray's object store maps its pages read-only, which suits a frozen ViT.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            state = {k: torch.from_numpy(v) for k, v in arrays.items()}
        vit = build_skeleton(name, state)
        vit.load_state_dict(state, strict=True, assign=True)
        return cls(name, vit, identity)


class SharedBackbone:
    """A method's reference to the ViT that it shares with others: neither copied nor pickled with the method."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedBackbone:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a task model is not pickled, since it shares its frozen ViT with other tasks: write it by "
            "hst.checkpoint.save_checkpoint and read it by hst.checkpoint.load_task_model, or send its state_dict()"
        )


def backbone_identity(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over (name, shape, float32 bytes), sorted by name, of a ViT's weights without its classifier."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().to(torch.float32).cpu().contiguous().numpy()
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


@functools.cache
def check_supported(name: str) -> None:
    """Check that HST can run beside the ViT ``name``, without its weights.

    Raises:
        ValueError: no such model, or one that HST cannot run beside; see `hst.vit.dry_run`.
    """
    check_runs_as_in_timm(name, lambda vit: Backbone(name, vit, ""))


def load_backbone(name: str, weights: str | Path | None = None) -> Backbone:
    """A frozen backbone by timm name (or a name of `hst.vit.weights.PROJECT_VITS`).

    Args:
        name: for example ``vit_base_patch16_224.augreg_in21k``.
        weights: a local file (safetensors, .pth, JAX .npz), ``None`` for timm's own download (for a project's ViT, the
            file in this package), or ``"random"``: numbers drawn with a fixed seed, for comparisons and tests.

    Raises:
        ValueError: no such model, one that HST cannot run beside, or weights of another model.
        FileNotFoundError: no such file.
    """
    check_supported(name)  # before anything is read or fetched
    source = strip_classifier(read_source(name, weights))
    vit = build_skeleton(name, source)
    vit.load_state_dict(source, strict=True, assign=True)
    return Backbone(name, vit, backbone_identity(source))
