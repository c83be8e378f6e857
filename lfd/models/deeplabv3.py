"""DeepLabV3 on ResNets: Chen et al., "Rethinking Atrous Convolution", 2017 (arXiv 1706.05587).

From torchvision's parts and with its names, so that torchvision's segmentation checkpoints fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, cast

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}
"""Atrous rates by output stride; the paper's section 4.1 doubles them when the stride halves."""


class DeepLabV3(nn.Module):
    """DeepLabV3 with an auxiliary FCN head on stage 3 that runs in training only.

    Args:
        backbone_name: `resnet18`, `resnet50` or `resnet101`.
        output_stride: 8 or 16, by dilating the last two stages or the last one.
        num_classes: K.
    """

    taps: ClassVar[dict[str, str]] = {
        "deep": "classifier.4:input",  # (B, 256, H/stride, W/stride)
        "stage1": "backbone.layer1",
        "stage2": "backbone.layer2",
        "stage3": "backbone.layer3",
        "stage4": "backbone.layer4",
    }

    def __init__(self, backbone_name: str, output_stride: int, num_classes: int) -> None:
        super().__init__()
        self.backbone_name = backbone_name
        resnet: ResNet = torchvision.models.get_model(backbone_name, weights=None)
        _dilate(resnet, output_stride)
        self.backbone = IntermediateLayerGetter(resnet, {"layer3": "aux", "layer4": "out"})
        width = resnet.fc.in_features
        self.classifier = DeepLabHead(width, num_classes, _RATES[output_stride])
        self.aux_classifier = FCNHead(width // 2, num_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"out": (B, K, h, w)}, and in training "aux" of the same kind."""
        features = self.backbone(image)
        result = {"out": self.classifier(features["out"])}
        if self.training:
            result["aux"] = self.aux_classifier(features["aux"])
        return result


def _dilate(resnet: ResNet, output_stride: int) -> None:
    """Trade the stride of the last stages for dilation, in place; no weight changes its shape.

    The same rule as torchvision's `replace_stride_with_dilation`, which refuses ResNet-18: in the
    first block of a stage the convolutions keep the dilation of the stage before.
    """
    dilation = 1
    stages = [resnet.layer4] if output_stride == 16 else [resnet.layer3, resnet.layer4]
    for stage in stages:
        before, dilation = dilation, dilation * 2
        for index, block in enumerate(cast("Iterable[BasicBlock | Bottleneck]", stage)):
            rate = before if index == 0 else dilation
            convs = [block.conv1, block.conv2] if isinstance(block, BasicBlock) else [block.conv2]
            for conv in convs:
                conv.stride, conv.dilation, conv.padding = (1, 1), (rate, rate), (rate, rate)
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)


def build(backbone_name: str, output_stride: int, num_classes: int) -> nn.Module:
    """Return an untrained DeepLabV3."""
    return DeepLabV3(backbone_name, output_stride, num_classes)
