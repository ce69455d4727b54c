"""What several tasks tune inside the ViT, gathered by sample: each sample gets its task's registers and LayerNorms.

The ViT's linear layers are then one product for the samples of all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

Registers = Callable[[int], torch.Tensor | None]
"""Block -> (1, M, D), or None where the block is not tapped."""
Norms = Callable[[int], tuple[nn.LayerNorm, nn.LayerNorm]]
"""Block -> norm1 and norm2."""


@dataclass(frozen=True)
class SampleNorm:
    """A LayerNorm of which each sample has its own weight and bias (B, D)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        normed = F.layer_norm(x, x.shape[-1:], None, None, self.eps)
        return torch.addcmul(self.bias[:, None], normed, self.weight[:, None])


class ByTask:
    """Registers and LayerNorms of a batch that holds samples of several tasks, one task after the other.

    Args:
        registers: each task's; all tasks have them, or none has.
        norms: each task's.
        counts: samples of each task.
        device: where they are.
    """

    def __init__(
        self, registers: Sequence[Registers], norms: Sequence[Norms], counts: Sequence[int], device: torch.device
    ) -> None:
        self._registers, self._norms = registers, norms
        # Each sample's task. It is made on the device: a copy from the host would have to be waited for.
        self._tasks = torch.cat([torch.full((count,), i, device=device) for i, count in enumerate(counts)])

    def registers(self, block: int) -> torch.Tensor | None:
        """(B, M, D), or None where the block is not tapped."""
        present = [tokens for one in self._registers if (tokens := one(block)) is not None]
        return torch.cat(present)[self._tasks] if present else None

    def norms(self, block: int) -> tuple[SampleNorm, SampleNorm]:
        """The two LayerNorms of a block."""
        pairs = [norms(block) for norms in self._norms]
        first, second = (
            SampleNorm(
                torch.stack([pair[half].weight for pair in pairs])[self._tasks],
                torch.stack([pair[half].bias for pair in pairs])[self._tasks],
                pairs[0][half].eps,
            )
            for half in (0, 1)
        )
        return first, second


def joined_scales(
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
