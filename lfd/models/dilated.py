"""What DeepLabV3 and PSPNet share: a dilated backbone, a context module, a classifier."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from lfd.models.backbones import CIRKD_FAMILY, Backbone


class DilatedSegmenter(nn.Module):
    """Context on a dilated backbone, with an auxiliary FCN head on stage 3 that runs in training only.

    Attributes:
        taps: `deep`, what the last convolution is given, (B, width, h, w); `stage1` to `stage4`.
        align_corners: How its logits are to be resized.

    Args:
        backbone: The backbone.
        context: Maps (B, backbone.channels, h, w) to (B, context_channels, h, w).
        context_channels: What the context module returns.
        width: Channels before the last convolution.
        num_classes: K.
    """

    def __init__(
        self, backbone: Backbone, context: nn.Module, context_channels: int, width: int, num_classes: int
    ) -> None:
        super().__init__()
        family = backbone.name in CIRKD_FAMILY
        self.backbone_name = backbone.name
        self.align_corners = family
        stages = {tap: f"backbone.{path}" for tap, path in backbone.stages.items()}
        self.taps = {"deep": "classifier.4:input", **stages}
        self.backbone = backbone.module
        self.classifier = nn.Sequential(
            context,
            nn.Conv2d(context_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            # One place for both, so that the classifier is number 4 as in torchvision, which has no dropout here.
            nn.Sequential(nn.ReLU(), nn.Dropout(0.1)) if family else nn.ReLU(),
            nn.Conv2d(width, num_classes, 1),
        )
        self.aux_classifier = None if backbone.aux_channels is None else FCNHead(backbone.aux_channels, num_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"out": (B, K, h, w)}, and in training "aux" of the same kind, where it has one."""
        features = self.backbone(image)
        result = {"out": self.classifier(features["out"])}
        if self.training and self.aux_classifier is not None:
            result["aux"] = self.aux_classifier(features["aux"])
        return result
