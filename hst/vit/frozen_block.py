"""A frozen ViT block that keeps only what the gradients of its input, LayerNorms and registers need. It keeps no input
of a frozen linear, and exchanges registers without a copy of the stream.

It keeps for each token, in multiples of the stream's width D: the stream before the attention (1), queries, keys and
values (3), the attention's output (1), the stream before the MLP (1), and the MLP's hidden values before their
activation (4). With ``recompute`` the last 4 are computed again. Values and gradients equal those of timm's block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerScale, Mlp
from timm.layers.activations import GELU, GELUTanh
from torch import nn
from torch.autograd.function import once_differentiable

from hst.layers.autocast import no_autocast
from hst.vit.stream_norm import norm, norm_backward

_APPROXIMATIONS = {nn.GELU: "none", GELU: "none", GELUTanh: "tanh"}
"""The ``approximate`` of each supported activation, as torch names it."""


class Norm(Protocol):
    """A LayerNorm with one weight and bias, or with one for each sample."""

    @property
    def weight(self) -> torch.Tensor: ...
    @property
    def bias(self) -> torch.Tensor: ...
    @property
    def eps(self) -> float: ...
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class FrozenBlock:
    """The frozen weights of one ViT block, in the type that its products are computed in."""

    num_heads: int
    qkv: tuple[torch.Tensor, torch.Tensor | None]
    """Weight (3 D, D) and bias."""
    proj: tuple[torch.Tensor, torch.Tensor | None]
    """Weight (D, D) and bias."""
    fc1: tuple[torch.Tensor, torch.Tensor | None]
    """Weight (4 D, D) and bias."""
    fc2: tuple[torch.Tensor, torch.Tensor | None]
    """Weight (D, 4 D) and bias."""
    gamma1: torch.Tensor | None
    """LayerScale of the attention's branch, (D,)."""
    gamma2: torch.Tensor | None
    """LayerScale of the MLP's branch, (D,)."""
    gelu: str
    """``none`` (exact) or ``tanh``."""
    dtype: torch.dtype
    """Type of the products. The stream may have another."""

    @classmethod
    def of(cls, block: Any, dtype: torch.dtype) -> FrozenBlock | None:
        """Take the weights of a timm block. None if the block has a part that this class does not support."""
        attn, mlp = block.attn, block.mlp
        plain = type(attn) is Attention and type(mlp) is Mlp
        plain = (
            plain and attn.gate is None and all(type(n) is nn.Identity for n in (attn.q_norm, attn.k_norm, attn.norm))
        )
        plain = plain and type(mlp.norm) is nn.Identity and type(mlp.act) in _APPROXIMATIONS
        plain = plain and all(type(linear) is nn.Linear for linear in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))
        plain = plain and all(type(ls) in (nn.Identity, LayerScale) for ls in (block.ls1, block.ls2))
        plain = plain and attn.attn_dim == attn.proj.out_features
        if not plain:
            return None

        def weights(linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
            return linear.weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype)

        def gamma(scale: nn.Module) -> torch.Tensor | None:
            return scale.gamma if isinstance(scale, LayerScale) else None

        return cls(
            num_heads=attn.num_heads,
            qkv=weights(attn.qkv),
            proj=weights(attn.proj),
            fc1=weights(mlp.fc1),
            fc2=weights(mlp.fc2),
            gamma1=gamma(block.ls1),
            gamma2=gamma(block.ls2),
            gelu=getattr(mlp.act, "approximate", _APPROXIMATIONS[type(mlp.act)]),
            dtype=dtype,
        )

    def weights(self) -> list[torch.Tensor]:
        """Weights and biases of all linears."""
        return [one for linear in (self.qkv, self.proj, self.fc1, self.fc2) for one in linear if one is not None]

    def forward(
        self,
        x: torch.Tensor,
        norms: tuple[Norm, Norm],
        registers: torch.Tensor | None,
        scales: tuple[torch.Tensor | None, torch.Tensor | None],
        *,
        recompute: bool,
    ) -> torch.Tensor:
        """The block's output.

        Args:
            x: the stream (B, N, D). Any ``registers`` replace its first M tokens.
            norms: the task's norm1 and norm2. ``weight`` and ``bias`` are (D,), or (B, D) for samples of several tasks.
            registers: (1, M, D) for all samples, (B, M, D) with each sample's own, or None.
            scales: drop-path scales (B,) of the two branches, or None.
            recompute: compute the MLP's hidden values again in the backward pass, and do not keep them.
        """
        norm1, norm2 = norms
        if registers is not None and norm1.weight.dim() == 2:
            registers = registers.expand(len(x), -1, -1)  # each sample normalises them by its own weights
        asked = (x, registers, norm1.weight, norm1.bias)
        keep = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in asked)
        x = _AttentionHalf.apply(x, registers, norm1.weight, norm1.bias, norm1.eps, scales[0], self, keep)
        return _MlpHalf.apply(x, norm2.weight, norm2.bias, norm2.eps, scales[1], self, recompute)


class _AttentionHalf(torch.autograd.Function):
    """x + attention(norm(x)), where registers replace x's first tokens."""

    @staticmethod
    def forward(ctx: Any, x, registers, weight, bias, eps, scale, block: FrozenBlock, keep: bool) -> torch.Tensor:  # type: ignore[no-untyped-def]
        with no_autocast(x):
            normed, mean, rstd = norm(x, weight, bias, eps, block.dtype)
            if registers is not None:
                normed[:, : registers.shape[1]] = norm(registers.to(x.dtype), weight, bias, eps, block.dtype)[0]
            qkv = F.linear(normed, *block.qkv)
            q, k, v = (part.detach() for part in _heads(qkv, block.num_heads))
            with torch.set_grad_enabled(keep):
                for part in (q, k, v):
                    part.requires_grad_(keep)
                attended = F.scaled_dot_product_attention(q, k, v)
            out = F.linear(attended.detach().transpose(1, 2).flatten(2), *block.proj)
            out = _add_stream(_scaled(out, block.gamma1, scale, block.dtype), x, registers)
        ctx.block, ctx.eps, ctx.attention = block, eps, (attended, q, k, v) if keep else None
        ctx.save_for_backward(x, registers, weight, bias, mean, rstd, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, registers, weight, bias, mean, rstd, scale = ctx.saved_tensors
        block: FrozenBlock = ctx.block
        if ctx.attention is None:
            raise RuntimeError(
                "a second backward pass through a frozen block, which frees its values in the first; add up the "
                "losses and run one backward pass"
            )
        attended, q, k, v = ctx.attention
        ctx.attention = None
        wants_x, wants_affine = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        with no_autocast(x):
            branch = _scaled(grad, block.gamma1, scale, block.dtype).to(block.dtype)
            into = (branch @ block.proj[0]).unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
            parts = torch.autograd.grad(attended, (q, k, v), into)
            tokens = [part.transpose(1, 2).flatten(2).flatten(0, 1) for part in parts]  # each (B * N, D)
            wq, wk, wv = block.qkv[0].split(tokens[0].shape[-1])
            normed = torch.mm(tokens[0], wq)
            torch.addmm(normed, tokens[1], wk, out=normed)
            torch.addmm(normed, tokens[2], wv, out=normed)
            normed = normed.unflatten(0, x.shape[:2])
            if registers is not None:
                num = registers.shape[1]
                of_registers = _summed(normed[:, :num].to(x.dtype), registers), _summed(grad[:, :num], registers)
                normed[:, :num] = 0
            into_x, dweight, dbias = norm_backward(
                normed, x, (mean, rstd), (weight, bias), grad, wants_x=wants_x, wants_affine=wants_affine
            )
            into_registers = None
            if registers is not None:
                own = registers.to(x.dtype)
                _, *statistics = norm(own, weight, bias, ctx.eps, own.dtype)
                into_registers, more_weight, more_bias = norm_backward(
                    of_registers[0],
                    own,
                    statistics,
                    (weight, bias),
                    of_registers[1],
                    wants_x=True,
                    wants_affine=wants_affine,
                )
                if wants_affine:
                    dweight, dbias = dweight + more_weight, dbias + more_bias
                if into_x is not None:
                    into_x[:, :num] = 0
        return into_x, into_registers, dweight, dbias, None, None, None, None


class _MlpHalf(torch.autograd.Function):
    """x + mlp(norm(x))."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, eps, scale, block: FrozenBlock, recompute: bool) -> torch.Tensor:  # type: ignore[no-untyped-def]
        with no_autocast(x):
            normed, mean, rstd = norm(x, weight, bias, eps, block.dtype)
            hidden = F.linear(normed, *block.fc1)
            out = F.linear(F.gelu(hidden, approximate=block.gelu), *block.fc2)
            out = _add_stream(_scaled(out, block.gamma2, scale, block.dtype), x, None)
        ctx.block, ctx.eps = block, eps
        ctx.save_for_backward(x, weight, bias, mean, rstd, scale, None if recompute else hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, bias, mean, rstd, scale, hidden = ctx.saved_tensors
        block: FrozenBlock = ctx.block
        with no_autocast(x):
            if hidden is None:
                hidden = F.linear(norm(x, weight, bias, ctx.eps, block.dtype)[0], *block.fc1)
            branch = _scaled(grad, block.gamma2, scale, block.dtype).to(block.dtype) @ block.fc2[0]
            branch = torch.ops.aten.gelu_backward(branch, hidden, approximate=block.gelu) @ block.fc1[0]
            wants_x, wants_affine = ctx.needs_input_grad[:2]
            into_x, dweight, dbias = norm_backward(
                branch, x, (mean, rstd), (weight, bias), grad, wants_x=wants_x, wants_affine=wants_affine
            )
        return into_x, dweight, dbias, None, None, None, None


def _summed(grad: torch.Tensor, registers: torch.Tensor) -> torch.Tensor:
    """The registers' gradient, from that of each sample (B, M, D): summed if all samples share them, (1, M, D)."""
    return grad.sum(0, keepdim=True) if registers.shape[0] == 1 else grad.clone()


def _heads(qkv: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, N, 3 D) -> three views (B, heads, N, d)."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _scaled(
    branch: torch.Tensor, gamma: torch.Tensor | None, scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """A branch (B, N, D) times LayerScale (D,) and drop-path (B,).

    The drop-path scale is rounded to the type that the branch has in the forward pass. The backward pass, whose
    gradient may have another type, then multiplies by the same numbers.
    """
    if gamma is not None:
        branch, dtype = branch * gamma, gamma.dtype
    return branch if scale is None else branch * scale.to(dtype).to(branch.dtype)[:, None, None]


def _add_stream(branch: torch.Tensor, x: torch.Tensor, registers: torch.Tensor | None) -> torch.Tensor:
    """branch + x in x's type, where registers replace x's first tokens."""
    num = 0 if registers is None else registers.shape[1]
    first = None if registers is None else branch[:, :num] + registers
    out = branch.add_(x) if branch.dtype == x.dtype else torch.add(branch, x).to(x.dtype)  # no converted copy
    if first is not None:
        out[:, :num] = first
    return out
