"""Segmentation networks by name.

A family is one file here with a `build(...)` per variant, and its variants are lines in MODELS.
Every network takes normalised (B, 3, H, W) float and returns torchvision's dictionary: `out`,
class logits (B, K, h, w) at the network's own stride, and while training, where it has an auxiliary
head, `aux`. Its `taps` name the features that distillers ask for (see `lfd.taps`). Names with a colon are
networks of others, see `lfd.models.external`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from lfd.errors import unknown
from lfd.models import ddrnet, deeplabv3, external, lraspp, pspnet
from lfd.models.backbone_weights import load_backbone


class SegmentationModel(Protocol):
    """What a family's class offers beside being an nn.Module.

    Attributes:
        taps: Feature names to paths, for `lfd.taps`; at least `deep`, the last convolution's input.
        backbone: What `--weights` fills.
        backbone_name: Its name, torchvision's where torchvision has it.
        align_corners: How its logits are to be resized to a picture, by whoever resizes them: as `align_corners` of
            `torch.nn.functional.interpolate`. True for the CIRKD family, which trains and tests that way.
    """

    taps: dict[str, str]
    backbone: nn.Module
    backbone_name: str
    align_corners: bool

    def forward(self, image: Tensor) -> dict[str, Tensor]: ...


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "ddrnet23_slim": ddrnet.build,
    "lraspp_mobilenet_v3_large": partial(lraspp.build, "mobilenet_v3_large"),
    "lraspp_mobilenet_v3_small": partial(lraspp.build, "mobilenet_v3_small"),
    **{
        f"{family}_{backbone}_os{stride}": partial(module.build, backbone, stride)
        for family, module in (("deeplabv3", deeplabv3), ("pspnet", pspnet))
        for backbone in module.BACKBONES
        for stride in (8, 16)
    },
}


def check_name(name: str) -> None:
    """Refuse a name that means no network, before anything is built.

    Raises:
        UsageError: There is no such model, or it is somebody's own and not trusted.
        MissingDependencyError: It is of a package that is not installed.
    """
    if ":" in name:
        external.check_name(name)
    elif name not in MODELS:
        raise unknown("model", name, MODELS)


def create_model(name: str, num_classes: int, weights: str = "none") -> tuple[nn.Module, str]:
    """Build a network.

    Args:
        name: A name in MODELS, or one of `lfd.models.external`: `torchvision:NAME`, `smp:Arch/encoder`,
            `package.module:factory`.
        num_classes: K.
        weights: Where the backbone's weights come from: `imagenet` (torchvision's, downloaded once),
            `none` (random), or the path of a classification checkpoint: torchvision's, and for the backbones of
            the CIRKD family also that family's or timm's.

    Returns:
        The network in training mode, and a sentence that says what its backbone started from.

    Raises:
        UsageError: There is no such model, or it is somebody's own and not trusted.
        CheckpointError: The weights cannot be had or do not fit.
    """
    check_name(name)
    if ":" in name:
        return external.build(name, num_classes, weights)
    model = MODELS[name](num_classes)
    return model, load_backbone(model, name, weights)
