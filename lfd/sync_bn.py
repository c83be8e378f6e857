"""Batch norms that see the batches of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lfd.distributed import world_size


class _AllSum(torch.autograd.Function):
    """The sum over all processes, with its gradient: the sum over all of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def all_sum_with_gradient(value: Tensor) -> Tensor:
    """Return the sum over all processes, whose gradient reaches each of them."""
    total: Tensor = _AllSum.apply(value)
    return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over all processes on the CPU, where torch's own takes only GPU tensors.

    The formula of `nn.SyncBatchNorm`; the mean first and then the squares about it, in float32, so that
    it agrees with one process's batch norm over the joint batch to rounding. Every process has a batch of
    the same size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        wide = x.float()
        count = wide.numel() // wide.shape[1] * world_size()
        mean = all_sum_with_gradient(wide.sum((0, 2, 3))) / count
        centred = wide - mean.view(1, -1, 1, 1)
        variance = all_sum_with_gradient(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None  # noqa: S101  tracked in our models
            assert self.num_batches_tracked is not None and self.momentum is not None  # noqa: S101
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with its batch norms synchronised; keys and values of its state stay as they are."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncBatchNorm2d  # the same parameters, buffers and hooks, another forward
    return module
