"""DeepLabV3: Chen et al., "Rethinking Atrous Convolution", 2017 (arXiv 1706.05587).

From torchvision's parts and with its names, so that torchvision's segmentation checkpoints fit. On the
CIRKD family's backbones it is that family's, whose checkpoints `lfd.models.cirkd` renames.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from lfd.models.backbones import CIRKD_FAMILY, build_backbone
from lfd.models.dilated import DilatedSegmenter

BACKBONES = ("resnet18", "resnet50", "resnet101", *CIRKD_FAMILY)

_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}
"""Atrous rates by output stride; the paper's section 4.1 doubles them when the stride halves."""

_NARROW = ("resnet18s", "mobilenet_v2")
"""Backbones whose head the CIRKD family makes 128 channels wide instead of the paper's 256."""


class DeepLabV3(DilatedSegmenter):
    """DeepLabV3.

    Args:
        backbone_name: One of BACKBONES.
        output_stride: 8 or 16.
        num_classes: K.
    """

    def __init__(self, backbone_name: str, output_stride: int, num_classes: int) -> None:
        backbone = build_backbone(backbone_name, output_stride)
        width = 128 if backbone_name in _NARROW else 256
        context = ASPP(backbone.channels, _RATES[output_stride], width)
        super().__init__(backbone, context, width, width, num_classes)


def build(backbone_name: str, output_stride: int, num_classes: int) -> nn.Module:
    """Return an untrained DeepLabV3."""
    return DeepLabV3(backbone_name, output_stride, num_classes)
