"""The released HST model as plain equations on its own state dict. It is slow and obvious, and shares no code with
``hst/``.

It follows the paper (arXiv 2310.05393, eq. 1-5) and the released code: it interpolates the ViT's map before it projects
it, concatenates registers, and writes out cross-attention in full.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

State = Mapping[str, torch.Tensor]


def official_logits(
    state: State, images: torch.Tensor, *, vit_num_heads: int, side_num_heads: Sequence[int], depths: Sequence[int]
) -> torch.Tensor:
    """Logits (B, classes) of images (B, 3, S, S) in evaluation mode. ``depths``: number of ViT blocks of each stage."""
    registers, maps = vit_outputs(state, images, vit_num_heads)
    stage_of_block = [s for s, depth in enumerate(depths, start=1) for _ in range(depth)]
    x = images
    block = 0
    for s, depth in enumerate(depths, start=1):
        x = stem(state, images) if s == 1 else downsample(state, f"m_patch_embed{s}", x)
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        for j in range(depth):
            assert stage_of_block[block] == s
            patches = F.interpolate(maps[block], (height, width), mode="bilinear", align_corners=False)
            patches = linear(state, f"T_Bridge_{s}", patches.flatten(2).transpose(1, 2))
            meta = norm(state, f"m_proj_norm{block + 1}", linear(state, f"T_Bridge_{s}", registers[block]), eps=1e-5)
            meta = torch.cat([meta, patches.mean(dim=1, keepdim=True)], dim=1)
            tokens = side_block(state, f"m_block{s}.{j}", tokens, meta, patches, side_num_heads[s - 1])
            block += 1
        tokens = norm(state, f"m_norm{s}", tokens, eps=1e-6)
        x = tokens.transpose(1, 2).reshape(len(images), -1, height, width)
    pooled = x.mean(dim=(2, 3))
    centred = pooled - state["fc_norm.running_mean"]
    return linear(state, "head", centred / torch.sqrt(state["fc_norm.running_var"] + 1e-6))


def vit_outputs(state: State, images: torch.Tensor, num_heads: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The registers (B, M, D) and the patches as a map (B, D, h, w), after every ViT block."""
    weight = state["patch_embed.proj.weight"]
    grid_map = F.conv2d(images, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    batch, dim, height, width = grid_map.shape
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), grid_map.flatten(2).transpose(1, 2)], dim=1)
    x = x + state["pos_embed"]
    registers, maps = [], []
    for i in range(sum(1 for key in state if key.startswith("blocks.") and key.endswith(".attn.qkv.weight"))):
        own = state[f"m_embeddings.{i}"]
        count = own.shape[1]
        x = torch.cat([own.expand(batch, -1, -1), x], dim=1)
        q, k, v = linear(state, f"blocks.{i}.attn.qkv", norm(state, f"blocks.{i}.norm1", x, eps=1e-6)).chunk(3, dim=-1)
        x = x + linear(state, f"blocks.{i}.attn.proj", attention(q, k, v, num_heads))
        x = x + mlp(state, f"blocks.{i}.mlp", norm(state, f"blocks.{i}.norm2", x, eps=1e-6))
        registers.append(x[:, :count])
        maps.append(x[:, count + 1 :].transpose(1, 2).reshape(batch, dim, height, width))
        x = x[:, count:]
    return registers, maps


def side_block(
    state: State, name: str, x: torch.Tensor, meta: torch.Tensor, patches: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """Cross-attention to the meta tokens, addition of the patch features, and an MLP, all residual."""
    q = linear(state, f"{name}.attn.q", norm(state, f"{name}.norm1", x, eps=1e-6))
    k, v = linear(state, f"{name}.attn.k", meta), linear(state, f"{name}.attn.v", meta)
    x = x + linear(state, f"{name}.attn.proj", attention(q, k, v, num_heads))
    x = x + patches
    return x + mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, eps=1e-6))


def stem(state: State, images: torch.Tensor) -> torch.Tensor:
    """Images -> map at stride 4."""
    x = F.conv2d(images, state["m_patch_embed1.conv.0.weight"], stride=2, padding=1)
    name = "m_patch_embed1.conv.1"
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    x = (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]
    x = x.clamp(min=0)
    x = F.conv2d(x, state["m_patch_embed1.conv.3.weight"], state["m_patch_embed1.conv.3.bias"], stride=2)
    return map_norm(state, "m_patch_embed1.norm", x)


def downsample(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Map -> map at half the resolution."""
    x = F.conv2d(x, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"], stride=2, padding=1)
    return map_norm(state, f"{name}.norm", x)


def map_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return norm(state, name, x.permute(0, 2, 3, 1), eps=1e-5).permute(0, 3, 1, 2)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Softmax attention of q (B, N, C) to k and v (B, T, C), head by head."""
    size = q.shape[-1] // num_heads
    heads = []
    for h in range(num_heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(torch.softmax(scores, dim=-1) @ v[..., part])
    return torch.cat(heads, dim=-1)


def mlp(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    hidden = linear(state, f"{name}.fc1", x)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return linear(state, f"{name}.fc2", gelu)


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: torch.Tensor, *, eps: float) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def random_official_state(
    *,
    image_size: int,
    patch_size: int = 16,
    embed_dim: int = 24,
    vit_mlp: int = 48,
    widths: Sequence[int] = (8, 12, 16, 20),
    side_mlp_ratio: int = 4,
    depths: Sequence[int] = (1, 1, 1, 1),
    num_registers: int = 1,
    num_classes: int = 5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A state dict with the released code's names and random numbers everywhere, batch statistics included."""
    state: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, *shape: int, mean: float = 0.0, std: float = 0.1) -> None:
        state[name] = mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)

    def affine(name: str, size: int) -> None:
        draw(f"{name}.weight", size, mean=1.0)
        draw(f"{name}.bias", size)

    def layer(name: str, *shape: int) -> None:
        draw(f"{name}.weight", *shape, std=1 / math.sqrt(math.prod(shape[1:])))
        draw(f"{name}.bias", shape[0])

    def statistics(name: str, size: int) -> None:
        draw(f"{name}.running_mean", size)
        state[f"{name}.running_var"] = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
        state[f"{name}.num_batches_tracked"] = torch.tensor(17)

    draw("cls_token", 1, 1, embed_dim)
    draw("pos_embed", 1, (image_size // patch_size) ** 2 + 1, embed_dim)
    layer("patch_embed.proj", embed_dim, 3, patch_size, patch_size)
    for i, width in enumerate(width for width, depth in zip(widths, depths, strict=True) for _ in range(depth)):
        affine(f"blocks.{i}.norm1", embed_dim)
        layer(f"blocks.{i}.attn.qkv", 3 * embed_dim, embed_dim)
        layer(f"blocks.{i}.attn.proj", embed_dim, embed_dim)
        affine(f"blocks.{i}.norm2", embed_dim)
        layer(f"blocks.{i}.mlp.fc1", vit_mlp, embed_dim)
        layer(f"blocks.{i}.mlp.fc2", embed_dim, vit_mlp)
        draw(f"m_embeddings.{i}", 1, num_registers, embed_dim, std=0.5)
        affine(f"m_proj_norm{i + 1}", width)
        if not num_registers:  # the released code then leaves them at their initial values
            state[f"m_proj_norm{i + 1}.weight"].fill_(1)
            state[f"m_proj_norm{i + 1}.bias"].zero_()
    affine("norm", embed_dim)
    for s, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        if s == 1:
            draw("m_patch_embed1.conv.0.weight", width, 3, 3, 3, std=0.2)
            affine("m_patch_embed1.conv.1", width)
            statistics("m_patch_embed1.conv.1", width)
            layer("m_patch_embed1.conv.3", width, width, 2, 2)
        else:
            layer(f"m_patch_embed{s}.proj", width, widths[s - 2], 3, 3)
        affine(f"m_patch_embed{s}.norm", width)
        layer(f"T_Bridge_{s}", width, embed_dim)
        for j in range(depth):
            affine(f"m_block{s}.{j}.norm1", width)
            for part in ("q", "k", "v", "proj"):
                layer(f"m_block{s}.{j}.attn.{part}", width, width)
            affine(f"m_block{s}.{j}.norm2", width)
            layer(f"m_block{s}.{j}.mlp.fc1", side_mlp_ratio * width, width)
            layer(f"m_block{s}.{j}.mlp.fc2", width, side_mlp_ratio * width)
        affine(f"m_norm{s}", width)
    statistics("fc_norm", widths[-1])
    layer("head", num_classes, widths[-1])
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
