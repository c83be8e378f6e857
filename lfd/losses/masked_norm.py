"""Batch norm over the cells that count, for the heads and connectors that losses put on features.

Ioffe, Szegedy, "Batch normalization", ICML 2015, with the statistics taken over counted cells alone, of all
processes, so that void moves nothing. There are no running statistics: these modules work in training only and
are thrown away with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lfd.distributed import world_size
from lfd.sync_bn import all_sum_with_gradient


class MaskedBatchNorm2d(nn.Module):
    """Batch norm with a weight for each cell; not an `nn.BatchNorm2d`, whose forward takes none."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Normalise (B, C, h, w), in float32, by the cells where `known` (B, h, w) is 1."""
        wide, known = x.float(), known[:, None]
        count = _over_all(known.sum()).clamp_min(1)
        mean = _over_all((wide * known).sum((0, 2, 3))) / count
        centred = (wide - mean.view(1, -1, 1, 1)) * known
        variance = _over_all(centred.square().sum((0, 2, 3))) / count
        scale = (variance + self.eps).rsqrt() * self.weight
        return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def _over_all(value: Tensor) -> Tensor:
    return value if world_size() == 1 else all_sum_with_gradient(value)
