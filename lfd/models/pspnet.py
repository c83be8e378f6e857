"""PSPNet: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.

With the CIRKD family's widths; `lfd.models.cirkd` renames its checkpoints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.models.backbones import CIRKD_FAMILY, build_backbone
from lfd.models.dilated import DilatedSegmenter

BACKBONES = CIRKD_FAMILY
BINS = (1, 2, 3, 6)
"""Cells a side of the pyramid's levels (the paper's section 3.2)."""


class PyramidPooling(nn.Module):
    """The feature, and behind it its averages over 1, 4, 9 and 36 cells, each reduced to a quarter and resized.

    The averages are products with constant matrices, which give adaptive average pooling exactly. Where
    the grid is no multiple of the cells, PyTorch's exporter writes adaptive pooling as a hundred gathers;
    this is two MatMuls for every grid, and its gradient is deterministic on a GPU.

    Args:
        channels: Of the feature; it returns twice as many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // len(BINS)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU()) for _ in BINS
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 2 C, h, w)."""
        height, width = feature.shape[-2:]
        rows = feature.new_tensor(averages(height))
        columns = feature.new_tensor(averages(width))
        # All levels at once, (B, C, 12, 12); a level is its block on the diagonal.
        cells = rows @ (feature @ columns.T)
        found, begin = [feature], 0
        for bins, conv in zip(BINS, self.convs, strict=True):
            level = conv(cells[..., begin : begin + bins, begin : begin + bins])
            found.append(F.interpolate(level, (height, width), mode="bilinear", align_corners=True))
            begin += bins
        return torch.cat(found, 1)


def averages(length: int) -> list[list[float]]:
    """Return the matrix (sum of BINS, length) that averages a row of so many values into every level's cells.

    A cell i of n covers floor(i length / n) to ceil((i + 1) length / n), as in torch's adaptive pooling.
    """
    rows = []
    for bins in BINS:
        for i in range(bins):
            begin, end = i * length // bins, math.ceil((i + 1) * length / bins)
            rows.append([1 / (end - begin) if begin <= at < end else 0.0 for at in range(length)])
    return rows


class PSPNet(DilatedSegmenter):
    """PSPNet.

    Args:
        backbone_name: One of BACKBONES.
        output_stride: 8 or 16.
        num_classes: K.
    """

    def __init__(self, backbone_name: str, output_stride: int, num_classes: int) -> None:
        backbone = build_backbone(backbone_name, output_stride)
        width = 512 if backbone.channels == 2048 else 128
        context = PyramidPooling(backbone.channels)
        super().__init__(backbone, context, 2 * backbone.channels, width, num_classes)


def build(backbone_name: str, output_stride: int, num_classes: int) -> nn.Module:
    """Return an untrained PSPNet."""
    return PSPNet(backbone_name, output_stride, num_classes)
