"""Batch normalisation over the global batch, however many workers it is split over.

torch's SyncBatchNorm runs on GPUs only. This one runs on any process group, and its outputs, gradients and buffers
equal those of one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class GlobalBatchNorm(_BatchNorm):
    """Normalises dimension 1 of (B, C) or (B, C, H, W) by the mean and variance of the batch over all workers.

    With one process it is torch's batch norm. Its state dict has the keys and running statistics of ``nn.BatchNorm``.
    """

    estimated_share: float | None = None
    """None in training, where ``momentum`` moves the running statistics. Otherwise the next batch's share in them; then
    `num_batches_tracked`, which counts training batches, stays as it is."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() not in (2, 4) or input.shape[1] != self.num_features:
            raise ValueError(
                f"GlobalBatchNorm({self.num_features}): expected (B, C) or (B, C, H, W), got {tuple(input.shape)}"
            )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        share = self.momentum if self.estimated_share is None else self.estimated_share
        assert share is not None
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            if self.estimated_share is None:
                return super().forward(input)
            statistics = (self.running_mean, self.running_var)
            return F.batch_norm(input, *statistics, self.weight, self.bias, training=True, momentum=share, eps=self.eps)
        self._check_input_dim(input)
        x = input if input.dtype == torch.float64 else input.float()
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        local = x.new_full((1,), x.numel() // x.shape[1])
        packed = _AllReduceSum.apply(torch.cat([x.sum(dims), local]))
        count = packed[-1].detach()
        mean = packed[:-1] / count
        centred = x - mean.view(shape)
        var = _AllReduceSum.apply(centred.square().sum(dims)) / count  # second pass: no cancellation in E[x^2] - E[x]^2
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            if self.estimated_share is None:
                self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), share)
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


def batch_norm_without_affine(num_features: int) -> nn.Module:
    """The normalisation before the classifier: BatchNorm with affine=False and eps 1e-6, as in the released code."""
    return GlobalBatchNorm(num_features, eps=1e-6, affine=False)
