"""The convolutions before a stage: the stem on the image, and stride-2 steps between stages (paper section 3.4)."""

from __future__ import annotations

import torch
from torch import nn

from hst.layers.batch_norm import GlobalBatchNorm


class ConvStem(nn.Module):
    """Image -> tokens at stride 4: Conv3x3/2, BatchNorm, ReLU, Conv2x2/2, LayerNorm. The released code's ``Head``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.batch_norm = GlobalBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, H/4, W/4, width)."""
        x = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels-last, in a form that vmap supports
        x = self.conv2(torch.relu(self.batch_norm(self.conv1(x))))
        return self.norm(x.permute(0, 2, 3, 1))  # NCHW -> NHWC, a view in channels-last


class Downsample(nn.Module):
    """Tokens of one stage -> tokens of the next at half the resolution (rounded up): Conv3x3/2, LayerNorm."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, in_width) -> (B, ceil(H/2), ceil(W/2), width)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
