"""ImageNet weights for a backbone: from torchvision, from a file, or none, and always said which."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from lfd.errors import CheckpointError
from lfd.models import cirkd
from lfd.models.backbones import DEEP_STEM
from lfd.weights import check_values, read_tensors

_UNUSED = ("fc.", "classifier.", "features.18.", "down5.", "last_layer.", "linear.")
"""Prefixes of what a classification checkpoint has and a backbone has not; `features.18.` is MobileNetV2's, the rest
behind it DDRNet's."""

_FILES = {
    "ddrnet23_slim": "the classification checkpoint of DDRNet-23-slim by its authors",
    "resnet18s": "the CIRKD family's resnet18-imagenet.pth",
    "resnet50s": "timm's resnet50s.gluon_in1k",
    "resnet101s": "the CIRKD family's resnet101-imagenet.pth or timm's resnet101s.gluon_in1k",
    "mobilenet_v2": "torchvision's classification checkpoint or the CIRKD family's mobilenetv2-imagenet.pth",
}
"""What a file may be, where that is not torchvision's checkpoint alone."""


def load_backbone(model: nn.Module, name: str, weights: str) -> str:
    """Fill `model.backbone`.

    Args:
        model: A network of ours; `model.backbone_name` is the name of its backbone.
        name: The network's name, for messages.
        weights: `imagenet`, `none` or a path.

    Returns:
        A sentence for the user.

    Raises:
        CheckpointError: The weights do not exist, cannot be downloaded, or do not fit.
    """
    arch = str(model.backbone_name)
    if weights == "none":
        return f"{name}: backbone {arch} starts from random weights (weights none)"
    if weights == "imagenet":
        state, origin = _torchvisions(arch)
    else:
        state, origin = cirkd.rename(read_tensors(Path(weights))), weights
        check_values(state, weights)
    _load(model.get_submodule("backbone"), state, origin, arch)
    return f"{name}: backbone {arch} starts from {origin}"


def _torchvisions(arch: str) -> tuple[dict[str, Tensor], str]:
    if arch not in torchvision.models.list_models():
        stem = ", whose stem is three 3x3 convolutions" if arch in DEEP_STEM else ""
        raise CheckpointError(
            f"torchvision has no ImageNet weights for {arch}{stem}. "
            f"Fix: give --weights FILE with {_FILES[arch]}, or --weights none to start from random weights"
        )
    choice = torchvision.models.get_model_weights(arch).DEFAULT
    try:
        state = dict(choice.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except Exception as error:  # no network, a wrong hash, or anything that a spoilt file in torch's cache leads to
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError(
            f"ImageNet weights {choice} for {arch} cannot be had from {choice.url} or from the copy in "
            f"{torch.hub.get_dir()}/checkpoints ({reason}). Fix: remove a broken copy, give --weights FILE with "
            "torchvision's checkpoint, or --weights none to start from random weights"
        ) from error
    return state, f"torchvision's {choice}"


def _load(backbone: nn.Module, state: dict[str, Tensor], origin: str, arch: str) -> None:
    found = {k.removeprefix("features."): v for k, v in state.items() if not k.startswith(_UNUSED)}
    wanted = backbone.state_dict()
    expected = _FILES.get(arch, "torchvision's classification checkpoint of that network")
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{origin}: lacks {len(missing)} of {len(wanted)} tensors of {arch}, the first {missing[0]!r}; "
            f"expected {expected}"
        )
    more = [k for k in found if k not in wanted]
    if more:  # a deeper network of the same kind has everything a shallower one wants
        raise CheckpointError(
            f"{origin}: has {len(more)} tensors that {arch} has not, the first {more[0]!r}; expected {expected}"
        )
    shapes = [k for k in wanted if k in found and found[k].shape != wanted[k].shape]
    if shapes:
        key = shapes[0]
        raise CheckpointError(
            f"{origin}: {key!r} has shape {tuple(found[key].shape)}; {arch} expects {tuple(wanted[key].shape)}"
        )
    backbone.load_state_dict({k: found.get(k, v) for k, v in wanted.items()})
