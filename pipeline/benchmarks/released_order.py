"""HST in the order of the paper's released code, for comparison; only benchmarks and tests use it.

It interpolates the side network's input at the ViT's width and projects it afterwards, computes the cross-attention
token by token, and prepends the registers by copying the stream. Its outputs equal those of `hst.model.TaskModel`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hst.layers.drop_path import add_branch
from hst.model import TaskModel
from hst.side.side_block import MetaCrossAttention, SideBlock


class ReleasedOrder(nn.Module):
    """Runs a task model with its own parameters in the released code's order."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: torch.Tensor, targets: torch.Tensor, path_scales: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Same as `TaskModel.forward`."""
        logits = self._logits(images, path_scales)
        return {**self.model.head.losses(logits, targets), "logits": logits.detach()}

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Same as `TaskModel.predict`."""
        was_training = self.training
        self.eval()
        try:
            return self._logits(images, None)
        finally:
            self.train(was_training)

    def _logits(self, images: torch.Tensor, path_scales: torch.Tensor | None) -> torch.Tensor:
        extractor, vit = self.model.extractor, self.model.backbone.vit
        depth = self.model.backbone.depth
        scales = [None] * (2 * depth + 2 * extractor.side.num_blocks) if path_scales is None else list(path_scales)
        stream, grid = self.model.backbone.embed(images)
        taps: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for i, block in enumerate(vit.blocks):
            norm1, norm2 = (block.norm1, block.norm2) if extractor.block_norms is None else extractor.block_norms(i)
            registers = None if extractor.meta_register is None else extractor.meta_register(i)
            count = 0 if registers is None else registers.shape[1]
            if registers is not None:
                stream = torch.cat([registers.expand(len(stream), -1, -1), stream], dim=1)
            stream = add_branch(stream, block.ls1(block.attn(norm1(stream))), scales[2 * i])
            stream = add_branch(stream, block.ls2(block.mlp(norm2(stream))), scales[2 * i + 1])
            own, stream = (stream[:, :count] if count else None), stream[:, count:]
            if i in extractor.taps:
                taps[i] = stream[:, vit.num_prefix_tokens :], own
        pyramid, x, path = [], images, 2 * depth
        for stage in extractor.side.stages:
            x = stage.embed(x)
            for i, tap in enumerate(stage.taps):
                x = self._block(stage, i, x, *taps[tap], grid=grid, scales=scales[path : path + 2])
                path += 2
            x = stage.norm(x)
            pyramid.append(x)
        class_token = None
        if self.model.head.needs_class_token:
            norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
            class_token = norm(stream[:, 0])
        return self.model.head(pyramid, class_token)

    def _block(
        self,
        stage: nn.Module,
        i: int,
        x: torch.Tensor,
        patches: torch.Tensor,
        registers: torch.Tensor | None,
        *,
        grid: tuple[int, int],
        scales: list[torch.Tensor | None],
    ) -> torch.Tensor:
        """Side tokens (B, H, W, C), a ViT block's patches (B, h*w, D) and registers (B, M, D) -> (B, H, W, C)."""
        bridge, block, size = stage.bridge, stage.blocks[i], x.shape[1:3]  # type: ignore[index]
        project = bridge.proj[i if len(bridge.proj) > 1 else 0]  # type: ignore[arg-type, index, union-attr]
        maps = patches.transpose(1, 2).unflatten(2, grid)  # NLC -> NCHW, in the ViT's width
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        features = project(maps.flatten(2).transpose(1, 2))  # type: ignore[operator]
        meta = [] if registers is None else [bridge.register_norm[i](project(registers))]  # type: ignore[index, operator, union-attr]
        if stage.use_global_token:
            meta.append(features.mean(1, keepdim=True))
        assert isinstance(block, SideBlock)
        tokens = x.flatten(1, 2)
        if block.cross_attention:
            attended = _attention(block.attn, block.norm1(tokens), torch.cat(meta, dim=1))
            tokens = add_branch(tokens, attended, scales[0])
        if block.inject:
            tokens = tokens + features
        return add_branch(tokens, block.mlp(block.norm2(tokens)), scales[1]).unflatten(1, size)


def _attention(attention: MetaCrossAttention, x: torch.Tensor, meta: torch.Tensor) -> torch.Tensor:
    """Side tokens (B, L, C) and meta tokens (B, T, C) -> (B, L, C), with each step written out."""

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    q, k, v = heads(attention.q(x)), heads(attention.k(meta)), heads(attention.v(meta))
    weights = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))
