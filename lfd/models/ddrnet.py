"""DDRNet-23-slim: Hong et al., "Deep Dual-resolution Networks for Real-time [...] Segmentation", arXiv 2101.06085.

A student for small devices that needs no ImageNet weights. Published, on Cityscapes' val split, all from random
weights: 76.3 % mIoU (77.8 with ImageNet) for 5.7 M parameters and 36.3 GMACs; PIDNet-S, whose third branch needs a loss
of its own, 76.4 for 7.7 M and 47.3 (the authors' tables, and Yang et al., CVPR 2025, arXiv 2503.03325).

Measured on CamVid, 1600 steps of 8 at 180x240 from random weights, one seed: test mIoU 41.85 %, where
LRASPP-MobileNetV3-small has 33.61. On one CPU core it takes 2.5 to 3 times LRASPP's time in fp32. Its plain 3x3
convolutions become twice as fast in INT8 at no loss of mIoU, where MobileNetV3's depthwise ones gain little or nothing:
about 1.4 times LRASPP's fp32 time on ONNX Runtime, about the same on OpenVINO.

Weights keep PyTorch's own initialisation; the authors' (normal, by fan-out) gave 34.61 in the same run. Probably
because its weights are 2.4 times larger: behind a batch norm only a step's size relative to them counts, and Adam's
steps have one size.

Modules carry the names of the authors' code: its `final_layer` is `classifier` here, `seghead_extra` is
`aux_classifier`, `spp` is `context`, and the rest is `backbone`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLANES = 32
"""Channels of the stem; every width of the backbone is a multiple."""
CONTEXT = 128
"""Channels of a scale of the context module."""
HEAD = 64
"""Channels before the last convolution."""


class Residual(nn.Module):
    """A residual block of ResNet, He et al., CVPR 2016, whose last ReLU can be left out.

    Args:
        channels: Of the input.
        width: Of its 3x3 convolutions.
        stride: Of the block.
        bottleneck: One 3x3 convolution between two 1x1, that returns 2 width channels; else two 3x3.
        activate: End in a ReLU.
    """

    def __init__(
        self, channels: int, width: int, stride: int = 1, bottleneck: bool = False, activate: bool = True
    ) -> None:
        super().__init__()
        self.activate = activate
        out = 2 * width if bottleneck else width
        first = (1, 1, 0) if bottleneck else (3, stride, 1)  # kernel, stride, padding
        self.conv1 = nn.Conv2d(channels, width, *first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride if bottleneck else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False) if bottleneck else None
        self.bn3 = nn.BatchNorm2d(out) if bottleneck else None
        self.downsample = None if stride == 1 and channels == out else conv_bn(channels, out, 1, stride)

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h / stride, w / stride)."""
        found: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(feature)))))
        if self.conv3 is not None and self.bn3 is not None:
            found = self.bn3(self.conv3(F.relu(found)))
        found = found + (feature if self.downsample is None else self.downsample(feature))
        return F.relu(found) if self.activate else found


def conv_bn(channels: int, out: int, side: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """Return a convolution that keeps the grid up to its stride, and its batch norm."""
    return nn.Sequential(nn.Conv2d(channels, out, side, stride, side // 2, bias=bias), nn.BatchNorm2d(out))


def bn_conv(channels: int, out: int, side: int) -> list[nn.Module]:
    """Return what the context module is made of: batch norm, ReLU, convolution."""
    return [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, out, side, padding=side // 2, bias=False)]


def basics(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """Return a stage: two basic blocks, the second without its last ReLU, which comes after the branches' fusion."""
    return nn.Sequential(Residual(channels, width, stride), Residual(width, width, activate=False))


def resize(feature: Tensor, like: Tensor) -> Tensor:
    """Return (B, C, h, w) resized to the grid of `like`."""
    return F.interpolate(feature, like.shape[-2:], mode="bilinear", align_corners=False)


class DualResolution(nn.Module):
    """The backbone: a branch that stays at stride 8 and one that goes on to stride 64; they exchange features twice."""

    def __init__(self) -> None:
        super().__init__()
        c = PLANES
        self.conv1 = nn.Sequential(
            *conv_bn(3, c, 3, 2, bias=True), nn.ReLU(), *conv_bn(c, c, 3, 2, bias=True), nn.ReLU()
        )
        self.layer1 = basics(c, c)
        self.layer2 = basics(c, 2 * c, 2)
        self.layer3 = basics(2 * c, 4 * c, 2)
        self.layer4 = basics(4 * c, 8 * c, 2)
        self.layer5 = nn.Sequential(Residual(8 * c, 8 * c, 2, bottleneck=True, activate=False))
        self.layer3_ = basics(2 * c, 2 * c)
        self.layer4_ = basics(2 * c, 2 * c)
        self.layer5_ = nn.Sequential(Residual(2 * c, 2 * c, bottleneck=True, activate=False))
        self.compression3 = conv_bn(4 * c, 2 * c, 1)
        self.compression4 = conv_bn(8 * c, 2 * c, 1)
        self.down3 = conv_bn(2 * c, 4 * c, 3, 2)
        self.down4 = nn.Sequential(*conv_bn(2 * c, 4 * c, 3, 2), nn.ReLU(), *conv_bn(4 * c, 8 * c, 3, 2))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to features.

        Returns:
            `high` (B, 128, H/8, W/8), `low` (B, 512, H/64, W/64), and `aux` (B, 64, H/8, W/8) after the first exchange.
        """
        shared = F.relu(self.layer2(F.relu(self.layer1(self.conv1(image)))))
        low, high = self.layer3(shared), self.layer3_(shared)
        aux = high + resize(self.compression3(F.relu(low)), high)
        low = self.layer4(F.relu(low + self.down3(F.relu(high))))
        high = self.layer4_(F.relu(aux))
        fused = high + resize(self.compression4(F.relu(low)), high)
        low = self.layer5(F.relu(low + self.down4(F.relu(high))))
        return {"high": self.layer5_(F.relu(fused)), "low": low, "aux": aux}


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling (section III-C): averages over ever larger cells, each added to the one before.

    Args:
        channels: Of the feature.
        out: What it returns.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.scale0 = nn.Sequential(*bn_conv(channels, CONTEXT, 1))
        self.scale1 = nn.Sequential(nn.AvgPool2d(5, 2, 2), *bn_conv(channels, CONTEXT, 1))
        self.scale2 = nn.Sequential(nn.AvgPool2d(9, 4, 4), *bn_conv(channels, CONTEXT, 1))
        self.scale3 = nn.Sequential(nn.AvgPool2d(17, 8, 8), *bn_conv(channels, CONTEXT, 1))
        self.scale4 = nn.Sequential(nn.AdaptiveAvgPool2d(1), *bn_conv(channels, CONTEXT, 1))
        self.process1 = nn.Sequential(*bn_conv(CONTEXT, CONTEXT, 3))
        self.process2 = nn.Sequential(*bn_conv(CONTEXT, CONTEXT, 3))
        self.process3 = nn.Sequential(*bn_conv(CONTEXT, CONTEXT, 3))
        self.process4 = nn.Sequential(*bn_conv(CONTEXT, CONTEXT, 3))
        self.compression = nn.Sequential(*bn_conv(5 * CONTEXT, out, 1))
        self.shortcut = nn.Sequential(*bn_conv(channels, out, 1))

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h, w)."""
        scales = (self.scale1, self.scale2, self.scale3, self.scale4)
        processes = (self.process1, self.process2, self.process3, self.process4)
        found = [self.scale0(feature)]
        for scale, process in zip(scales, processes, strict=True):
            found.append(process(resize(scale(feature), feature) + found[-1]))
        aggregated: Tensor = self.compression(torch.cat(found, 1))
        shortcut: Tensor = self.shortcut(feature)
        return aggregated + shortcut


def head(channels: int, width: int, num_classes: int) -> nn.Sequential:
    """Return a segmentation head with the authors' names: BN, ReLU, 3x3, BN, ReLU, 1x1."""
    parts = {
        "bn1": nn.BatchNorm2d(channels),
        "relu1": nn.ReLU(),
        "conv1": nn.Conv2d(channels, width, 3, padding=1, bias=False),
        "bn2": nn.BatchNorm2d(width),
        "relu2": nn.ReLU(),
        "conv2": nn.Conv2d(width, num_classes, 1),
    }
    return nn.Sequential(OrderedDict(parts))


class DDRNet(nn.Module):
    """DDRNet-23-slim; logits at stride 8.

    Args:
        num_classes: K.
    """

    taps: ClassVar[dict[str, str]] = {
        "deep": "classifier.conv2:input",  # (B, 64, H/8, W/8)
        **{f"stage{i}": f"backbone.layer{i}" for i in (1, 2, 3, 4)},  # strides 4, 8, 16, 32
    }

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone_name = "ddrnet23_slim"
        self.align_corners = False
        self.backbone = DualResolution()
        self.context = DAPPM(16 * PLANES, 4 * PLANES)
        self.classifier = head(4 * PLANES, HEAD, num_classes)
        self.aux_classifier = head(2 * PLANES, HEAD, num_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"out": (B, K, H/8, W/8)}, and in training "aux" of the same shape."""
        features = self.backbone(image)
        high = features["high"]
        result = {"out": self.classifier(high + resize(self.context(features["low"]), high))}
        if self.training:
            result["aux"] = self.aux_classifier(features["aux"])
        return result


def build(num_classes: int) -> nn.Module:
    """Return an untrained DDRNet-23-slim."""
    return DDRNet(num_classes)
