"""Segmentation networks by name.

A family is one file here with a `build(...)` per variant, and its variants are lines in MODELS.
Every network takes normalised (B, 3, H, W) float and returns torchvision's dictionary: `out`,
class logits (B, K, h, w) at the network's own stride, and while training, where it has an auxiliary
head, `aux`. Its `taps` name the features that distillers ask for (see `lfd.taps`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from lfd.errors import unknown
from lfd.models import deeplabv3, lraspp
from lfd.models.backbone_weights import load_backbone


class SegmentationModel(Protocol):
    """What a family's class offers beside being an nn.Module."""

    taps: dict[str, str]
    backbone: nn.Module

    def forward(self, image: Tensor) -> dict[str, Tensor]: ...


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "lraspp_mobilenet_v3_large": partial(lraspp.build, "mobilenet_v3_large"),
    "lraspp_mobilenet_v3_small": partial(lraspp.build, "mobilenet_v3_small"),
    "deeplabv3_resnet18_os8": partial(deeplabv3.build, "resnet18", 8),
    "deeplabv3_resnet18_os16": partial(deeplabv3.build, "resnet18", 16),
    "deeplabv3_resnet50_os8": partial(deeplabv3.build, "resnet50", 8),
    "deeplabv3_resnet50_os16": partial(deeplabv3.build, "resnet50", 16),
    "deeplabv3_resnet101_os8": partial(deeplabv3.build, "resnet101", 8),
    "deeplabv3_resnet101_os16": partial(deeplabv3.build, "resnet101", 16),
}


def create_model(name: str, num_classes: int, weights: str = "none") -> tuple[nn.Module, str]:
    """Build a network.

    Args:
        name: A name in MODELS.
        num_classes: K.
        weights: Where the backbone's weights come from: `imagenet` (torchvision's, downloaded once),
            `none` (random), or the path of a torchvision classification checkpoint.

    Returns:
        The network in training mode, and a sentence that says what its backbone started from.

    Raises:
        UsageError: There is no such model.
        CheckpointError: The weights cannot be had or do not fit.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    model = MODELS[name](num_classes)
    return model, load_backbone(model, name, weights)
