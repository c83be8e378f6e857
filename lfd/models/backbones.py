"""Backbones with a dilated end: ResNets, ResNets with the deep stem, and MobileNetV2.

From torchvision's parts and with its names. `resnet18s`, `resnet50s` and `resnet101s` have timm's name
and timm's and mmsegmentation's keys for the stem of three 3x3 convolutions (64, 64, 128), which PSPNet's
authors introduced (Zhao et al., CVPR 2017) and the CIRKD family (github.com/winycg/CIRKD) builds on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import ResNet

DEEP_STEM = ("resnet18s", "resnet50s", "resnet101s")
CIRKD_FAMILY = (*DEEP_STEM, "mobilenet_v2")
"""Backbones of the CIRKD family, whose heads drop out 0.1 and whose logits are resized with align_corners."""

_MOBILENET_STAGES = {"stage1": "3", "stage2": "6", "stage3": "13", "stage4": "17"}
"""The last blocks of strides 4, 8, 16 and 32 before dilation; 18, a 1x1 convolution for the classifier, is left out."""


class Backbone(NamedTuple):
    """A backbone and what a head needs to know of it.

    Attributes:
        name: As in a model's name.
        module: Maps (B, 3, H, W) to {"out": (B, channels, h, w)}, and "aux" where there is an aux_channels.
        channels: Of the last stage.
        aux_channels: Of stage 3, where an auxiliary head belongs; None for none.
        stages: Tap names to paths inside the module.
    """

    name: str
    module: nn.Module
    channels: int
    aux_channels: int | None
    stages: dict[str, str]


def build_backbone(name: str, output_stride: int) -> Backbone:
    """Return an untrained backbone.

    Args:
        name: `mobilenet_v2`, or a ResNet with torchvision's name or one in DEEP_STEM.
        output_stride: 8 or 16, by dilating the last two stages or the last one.
    """
    last = slice(-1, None) if output_stride == 16 else slice(-2, None)
    if name == "mobilenet_v2":
        features = torchvision.models.mobilenet_v2(weights=None).features
        dilate([features[7:14], features[14:18]][last])
        module = IntermediateLayerGetter(features, {_MOBILENET_STAGES["stage4"]: "out"})
        return Backbone(name, module, features[17].out_channels, None, dict(_MOBILENET_STAGES))
    resnet: ResNet = torchvision.models.get_model(name.removesuffix("s"), weights=None)
    if name in DEEP_STEM:
        _deepen_stem(resnet)
    dilate([resnet.layer3, resnet.layer4][last])
    module = IntermediateLayerGetter(resnet, {"layer3": "aux", "layer4": "out"})
    channels: int = resnet.fc.in_features
    return Backbone(name, module, channels, channels // 2, {f"stage{i}": f"layer{i}" for i in (1, 2, 3, 4)})


def dilate(stages: Iterable[nn.Module]) -> None:
    """Trade the stride of the last stages for dilation, in place; no weight changes its shape.

    A convolution that halved the grid keeps the dilation from before its stage, since its input is as it
    was; every other 3x3 sees a grid twice as fine as it was made for, and doubles. It is the rule of
    torchvision's `replace_stride_with_dilation`, which refuses ResNet-18 and MobileNetV2.

    Args:
        stages: Consecutive stages of stride 2, in order; the first is the first to be dilated.
    """
    dilation = 1
    for stage in stages:
        before, dilation = dilation, dilation * 2
        for conv in stage.modules():
            if isinstance(conv, nn.Conv2d):
                rate = before if conv.stride == (2, 2) else dilation
                conv.stride = (1, 1)
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (rate, rate)


def _deepen_stem(resnet: ResNet) -> None:
    """Replace the 7x7 stem by three 3x3 convolutions, and the first stage by one that takes 128 channels."""
    sizes = ((3, 64, 2), (64, 64, 1), (64, 128, 1))
    convs = [nn.Conv2d(i, o, 3, stride, padding=1, bias=False) for i, o, stride in sizes]
    middle = (nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    again = (nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    resnet.conv1 = nn.Sequential(convs[0], *middle, convs[1], *again, convs[2])
    resnet.bn1 = nn.BatchNorm2d(128)
    resnet.inplanes = 128
    resnet.layer1 = resnet._make_layer(type(resnet.layer1[0]), 64, len(resnet.layer1))
    for part in (resnet.conv1, resnet.layer1):
        for conv in part.modules():
            if isinstance(conv, nn.Conv2d):  # as torchvision does for the rest
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
