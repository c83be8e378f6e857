"""torchvision's segmentation networks, with its modules and keys, so that its published COCO checkpoints fit."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from lfd.errors import unknown
from lfd.models.backbone_weights import load_backbone

_RESNET_STAGES = {f"stage{i}": f"backbone.layer{i}" for i in (1, 2, 3, 4)}
_MOBILENET_STAGES = {"stage1": "backbone.3", "stage2": "backbone.6", "stage3": "backbone.12", "stage4": "backbone.16"}
"""The last blocks of strides 4 and 8, of 16, and the last convolution, which dilation keeps at 16."""

NAMES: dict[str, dict[str, str]] = {
    "deeplabv3_resnet50": {"deep": "classifier.4:input", **_RESNET_STAGES},
    "deeplabv3_resnet101": {"deep": "classifier.4:input", **_RESNET_STAGES},
    "deeplabv3_mobilenet_v3_large": {"deep": "classifier.4:input", **_MOBILENET_STAGES},
    "fcn_resnet50": {"deep": "classifier.4:input", **_RESNET_STAGES},
    "fcn_resnet101": {"deep": "classifier.4:input", **_RESNET_STAGES},
    "lraspp_mobilenet_v3_large": {"deep": "classifier.high_classifier:input", **_MOBILENET_STAGES},
}
"""Network to its taps."""


class TorchvisionSegmenter(nn.Module):
    """Parts of a torchvision network, run without resizing the logits to the picture, and `aux` in training only.

    Whoever needs the logits at the picture's size resizes them, in the same way as torchvision's forward does.

    Args:
        name: One of NAMES.
        num_classes: K.
    """

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        options = {} if name.startswith("lraspp") else {"aux_loss": True}
        network = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes, **options
        )
        self.taps = dict(NAMES[name])
        self.backbone_name = name.partition("_")[2]
        self.align_corners = False
        self.multiple = 1
        self._takes_all = name.startswith("lraspp")  # its head has a branch for the finer of two features
        self.backbone: nn.Module = network.backbone
        self.classifier: nn.Module = network.classifier
        self.aux_classifier: nn.Module | None = getattr(network, "aux_classifier", None)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"out": (B, K, h, w)}, and in training "aux" of the same kind, where it has one."""
        features = self.backbone(image)
        result = {"out": self.classifier(features if self._takes_all else features["out"])}
        if self.training and self.aux_classifier is not None:
            result["aux"] = self.aux_classifier(features["aux"])
        return result


def check_name(name: str) -> None:
    """Refuse a name that torchvision has no segmentation network for.

    Raises:
        UsageError: With the nearest that it has.
    """
    if name not in NAMES:
        raise unknown("segmentation network of torchvision", name, NAMES)


def build(name: str, num_classes: int, weights: str) -> tuple[nn.Module, str]:
    """Build one of NAMES; see `lfd.models.create_model`."""
    model = TorchvisionSegmenter(name, num_classes)
    return model, load_backbone(model, f"torchvision:{name}", weights)
