"""What a task trains inside the frozen ViT: Meta-Register tokens (paper section 3.2) and copies of its LayerNorms.

Both are the task's parameters and are passed to the backbone's forward. The ViT itself is never written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn


class MetaRegister(nn.Module):
    """M learned tokens for each tapped ViT block, added to its input and removed from its output (``m_embeddings``)."""

    def __init__(self, blocks: Iterable[int], num_registers: int, embed_dim: int) -> None:
        super().__init__()
        self.tokens = nn.ParameterDict({str(b): nn.Parameter(torch.empty(1, num_registers, embed_dim)) for b in blocks})

    def forward(self, block: int) -> torch.Tensor | None:
        """The registers of ViT block ``block``, (1, M, embed_dim); None if the block is not tapped."""
        return self.tokens[str(block)] if str(block) in self.tokens else None  # noqa: SIM401 (ParameterDict.get asserts)


class BlockNorms(nn.Module):
    """The task's own norm1 and norm2 of every ViT block, cloned from the ViT when the task model is built."""

    def __init__(self, norms: Sequence[tuple[nn.LayerNorm, nn.LayerNorm]]) -> None:
        super().__init__()
        self.norm1 = nn.ModuleList(_clone(first) for first, _ in norms)
        self.norm2 = nn.ModuleList(_clone(second) for _, second in norms)

    def forward(self, block: int) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """The pair of LayerNorms of ViT block ``block``."""
        return self.norm1[block], self.norm2[block]  # type: ignore[return-value]


def _clone(norm: nn.LayerNorm) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, dtype=norm.weight.dtype, device=norm.weight.device)
    with torch.no_grad():
        copy.weight.copy_(norm.weight)
        copy.bias.copy_(norm.bias)
    return copy
