"""The configuration of a Hierarchical Side Network (HST, arXiv 2310.05393).

This module does not import torch, because light tools also read configs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_BACKBONE = "vit_base_patch16_224.augreg_in21k"
"""The ViT that the released code loads. timm's bare ``vit_base_patch16_224`` has other weights."""
DECODINGS = ("shown", "stored")
"""How a file's pixels become RGB. ``shown``: as an image viewer shows them, turned as the orientation tag says,
converted to sRGB from the file's colour profile, and laid on a background where they are transparent. ``stored``: as
they lie in the file, which is how published benchmarks were read; tags are ignored, and transparency is dropped."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
"""Filters of a resize, by PIL's names."""
HEAD_INPUTS = ("side", "side+cls")
"""What a classification head sees: only the side network (as in the paper), or also the ViT's class token."""
MEMORY_MODES = ("speed", "balanced", "memory")
"""What a training step recomputes in its backward pass instead of keeping it:

============  =====================================================================
``speed``     nothing
``balanced``  the blocks of the side network
``memory``    these blocks, and the hidden values of the ViT's MLPs
============  =====================================================================
"""
NUM_STAGES = 4
MAX_REGISTERS = 64


@dataclass(frozen=True, kw_only=True)
class HSNConfig:
    """One Hierarchical Side Network. The defaults are the released code's HSN-B."""

    widths: tuple[int, ...] = (32, 48, 64, 72)
    """Channels of the side tokens in the four stages (strides 4, 8, 16, 32)."""
    num_heads: tuple[int, ...] = (2, 4, 8, 12)
    """Cross-attention heads of the four stages; each divides its width."""
    depths: tuple[int, ...] | None = None
    """Number of side blocks in the four stages; None splits the ViT's depth evenly (`resolve`)."""
    mlp_ratio: float = 4.0
    """Hidden width of a side block's MLP, as a multiple of the block's width."""
    num_registers: int = 1
    """Number of Meta-Register tokens per tapped ViT block, 0 to 64 (paper section 3.2; 0 = none)."""
    tune_backbone_norms: bool = True
    """Train a copy of norm1 and norm2 of every ViT block."""
    share_bridge: bool = True
    """One bridge projection per stage; False gives every tapped ViT block its own."""
    use_global_token: bool = True
    """Add the mean of the bridged patch features to the meta tokens."""
    fine_grained_injection: bool = True
    """Add the bridged patch features to the side tokens (paper eq. 4)."""

    def __post_init__(self) -> None:
        for name in ("widths", "num_heads", "depths"):
            value = getattr(self, name)
            if value is None and name == "depths":
                continue
            if (
                not isinstance(value, (tuple, list))
                or len(value) != NUM_STAGES
                or not all(_is_count(v, 1) for v in value)
            ):
                raise ValueError(f"{name}={value!r}: expected {NUM_STAGES} integers of at least 1, one a stage")
            object.__setattr__(self, name, tuple(value))
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % heads:
                raise ValueError(
                    f"num_heads={self.num_heads!r}: {heads} heads do not divide width {width} of widths={self.widths!r}"
                )
        if not _is_count(self.num_registers, 0) or self.num_registers > MAX_REGISTERS:
            raise ValueError(f"num_registers={self.num_registers!r}: expected an integer from 0 to {MAX_REGISTERS}")
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, (int, float)) or self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio!r}: expected a number over 0")
        for name in ("tune_backbone_norms", "share_bridge", "use_global_token", "fine_grained_injection"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected true or false")
        if not (self.num_meta_tokens or self.fine_grained_injection):
            raise ValueError(
                "num_registers=0, use_global_token=False, fine_grained_injection=False: the side network would see "
                "nothing of the ViT; switch at least one of them on"
            )

    @property
    def num_meta_tokens(self) -> int:
        """Number of keys of a side block's cross-attention. With 0 there is no cross-attention."""
        return self.num_registers + self.use_global_token

    def resolve(self, vit_depth: int) -> HSNConfig:
        """The same network with ``depths`` filled in and checked for a ViT of ``vit_depth`` blocks.

        Raises:
            ValueError: There are fewer ViT blocks than stages, or more side blocks than ViT blocks.
        """
        if vit_depth < NUM_STAGES:
            raise ValueError(
                f"a ViT of {vit_depth} blocks cannot feed {NUM_STAGES} stages: it needs at least {NUM_STAGES}"
            )
        if self.depths is None:
            ends = [vit_depth * stage // NUM_STAGES for stage in range(NUM_STAGES + 1)]
            return dataclasses.replace(self, depths=tuple(b - a for a, b in itertools.pairwise(ends)))
        if sum(self.depths) > vit_depth:
            raise ValueError(
                f"depths={self.depths!r}: {sum(self.depths)} side blocks for a ViT of {vit_depth} blocks; at most one "
                f"side block a ViT block"
            )
        return self

    def taps(self, vit_depth: int) -> tuple[tuple[int, ...], ...]:
        """For each stage, the ViT block (from 0) that each of its side blocks reads.

        The ViT's blocks are divided evenly among all side blocks; a side block reads the last one of its share.
        """
        depths = self.resolve(vit_depth).depths
        assert depths is not None
        total = sum(depths)
        blocks = iter((side + 1) * vit_depth // total - 1 for side in range(total))
        return tuple(tuple(next(blocks) for _ in range(depth)) for depth in depths)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HSNConfig:
        """The inverse of `to_dict`; raises ValueError for an unknown field."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown HSNConfig fields {unknown}; known: {sorted(known)}")
        return cls(**values)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


HSN_S = HSNConfig(widths=(16, 24, 32, 36))
"""Half of HSN-B's widths. The released code lacks HSN-S; this is the best guess at the paper's 0.28 M parameters."""
HSN_B = HSNConfig()
"""The released code's network for classification."""
HSN_L = HSNConfig(widths=(64, 128, 256, 384))
"""The only widths, in steps of 8, that give the 10,404,096 parameters of the released dense models on ViT-B/16."""
HSN_PRESETS: dict[str, HSNConfig] = {"HSN_S": HSN_S, "HSN_B": HSN_B, "HSN_L": HSN_L}
