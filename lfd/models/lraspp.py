"""LR-ASPP on MobileNetV3: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 6.4.

From torchvision's parts and with its names, so that torchvision's segmentation checkpoints fit.
"""

from __future__ import annotations

from typing import ClassVar

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.lraspp import LRASPPHead


class LRASPP(nn.Module):
    """LR-ASPP; logits at stride 8.

    Args:
        backbone_name: `mobilenet_v3_large` or `mobilenet_v3_small`.
        num_classes: K.
    """

    taps: ClassVar[dict[str, str]] = {
        "deep": "classifier.high_classifier:input",  # (B, 128, H/8, W/8)
        "stage2": "backbone:low",
        "stage4": "backbone:high",
    }

    def __init__(self, backbone_name: str, num_classes: int) -> None:
        super().__init__()
        self.backbone_name = backbone_name
        self.align_corners = False
        # dilated: the last stage keeps stride 16, as the paper's segmentation networks do.
        features = torchvision.models.get_model(backbone_name, weights=None, dilated=True).features
        # Positions of the blocks that halve the grid; the fourth from the end has stride 8.
        stages = [0, *(i for i, b in enumerate(features) if getattr(b, "_is_cn", False)), len(features) - 1]
        low, high = stages[-4], stages[-1]
        self.backbone = IntermediateLayerGetter(features, {str(low): "low", str(high): "high"})
        self.classifier = LRASPPHead(features[low].out_channels, features[high].out_channels, num_classes, 128)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                # torchvision's 0.01 suits 300 epochs of ImageNet; with it the running statistics trail
                # the weights by a hundred steps, which a run of some hundred steps does not survive.
                module.momentum = 0.1

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"out": (B, K, H/8, W/8)}."""
        return {"out": self.classifier(self.backbone(image))}


def build(backbone_name: str, num_classes: int) -> nn.Module:
    """Return an untrained LRASPP."""
    return LRASPP(backbone_name, num_classes)
