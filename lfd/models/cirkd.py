"""Checkpoints of the CIRKD family (github.com/winycg/CIRKD; Yang et al., CVPR 2022), as they are published.

Their DeepLabV3 and PSPNet on ResNets with the deep stem and on MobileNetV2 are those in `lfd.models`
under other keys; likewise the ImageNet checkpoints that they start from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

from lfd.errors import CheckpointError
from lfd.models import deeplabv3, pspnet
from lfd.spec import Preprocess
from lfd.weights import fill

PREPROCESS_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
"""What they subtract from BGR in [0, 255]; they divide by nothing."""

_HEAD = {
    r"head\.aspp\.b0\.": "classifier.0.convs.0.",
    r"head\.aspp\.b([123])\.block\.": r"classifier.0.convs.\1.",
    r"head\.aspp\.b4\.gap\.": "classifier.0.convs.4.",
    r"head\.aspp\.project\.": "classifier.0.project.",
    r"head\.psp\.conv1\.": "classifier.0.convs.0.",
    r"head\.psp\.conv2\.": "classifier.0.convs.1.",
    r"head\.psp\.conv3\.": "classifier.0.convs.2.",
    r"head\.psp\.conv4\.": "classifier.0.convs.3.",
    r"head\.block\.0\.": "classifier.1.",
    r"head\.block\.1\.": "classifier.2.",
    r"head\.(block\.4|classifier)\.": "classifier.4.",
    r"auxlayer\.block\.": "aux_classifier.",
    r"pretrained\.net\.features\.": "backbone.",
    r"pretrained\.": "backbone.",
}
"""Beginnings of their keys and of ours, apart from the insides of a backbone."""

_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"}
"""The deep stem's modules."""

_BLOCK = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
_FIRST_BLOCK = {0: "0.0", 1: "0.1", 3: "1", 4: "2"}
"""Positions in a block of MobileNetV2, which torchvision nests; the first has no expansion."""

_FLAT = re.compile(r"(?:features|backbone)\.(\d+)\.conv\.(\d)\.(?=\w+$)")

_RESNETS = {(2, False): "resnet18s", (6, True): "resnet50s", (23, True): "resnet101s"}
"""By the number of blocks in stage 3, and whether a block has a third convolution."""

_BUILD = {"deeplabv3": deeplabv3.build, "pspnet": pspnet.build}


def preprocess(size_hw: tuple[int, int], resize: Literal["stretch", "letterbox"] = "stretch") -> Preprocess:
    """Return the family's input: BGR, its mean subtracted, not divided."""
    b, g, r = PREPROCESS_MEAN_BGR
    one = 1 / 255
    return Preprocess(size_hw, (b / 255, g / 255, r / 255), (one, one, one), resize, "BGR")


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict of theirs with our keys.

    A segmentation checkpoint becomes one of our network, a checkpoint of a backbone alone one of torchvision's
    classification network, with the deep stem as timm has it. Keys that are not of the family stay as they are,
    so any other state_dict comes back as it was.

    Args:
        state: Their tensors.

    Raises:
        CheckpointError: Two of their keys mean one of ours.
    """
    ours = _names(state)
    renamed = {ours[key]: value for key, value in state.items()}
    if len(renamed) != len(state):
        twice = next(key for key in state if list(ours.values()).count(ours[key]) > 1)
        raise CheckpointError(f"two keys of the checkpoint, one of them {twice!r}, both mean {ours[twice]!r}")
    return renamed


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Return our key for each of theirs."""
    found = {key: _outer_name(key) for key in keys}
    if {"conv3.weight", "backbone.conv3.weight"} & set(found.values()):  # top level: only a deep stem has it
        found = {key: _stem_name(name) for key, name in found.items()}
    flat = {key: match for key, name in found.items() if (match := _FLAT.match(name))}
    if any(int(match[2]) > 3 for match in flat.values()):  # torchvision's blocks end at 3
        for key, match in flat.items():
            block = _FIRST_BLOCK if match[1] == "1" else _BLOCK
            inside = block.get(int(match[2]), match[2])
            found[key] = f"{found[key][: match.start(2)]}{inside}{found[key][match.end(2) :]}"
    return found


def _outer_name(key: str) -> str:
    for theirs, ours in _HEAD.items():
        if re.match(theirs, key):
            return re.sub(f"^{theirs}", ours, key)
    return key


def _stem_name(name: str) -> str:
    prefix = "backbone." if name.startswith("backbone.") else ""
    module, dot, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{_STEM.get(module, module)}{dot}{rest}"


def recognise(state: dict[str, Tensor]) -> tuple[str, int] | None:
    """Tell a segmentation checkpoint of the family from its keys.

    Args:
        state: Tensors under their keys.

    Returns:
        Our name of the network, which has output stride 8 as all of theirs, and K; None for anything else.
    """
    found = _identify(state)
    return None if found is None else (f"{found[0]}_{found[1]}_os8", found[2])


def _identify(state: dict[str, Tensor]) -> tuple[str, str, int] | None:
    """Return the head's name, the backbone's name, and K."""
    if "head.aspp.b0.0.weight" in state:
        head, last = "deeplabv3", state.get("head.block.4.weight")
    elif "head.psp.conv1.0.weight" in state:
        head, last = "pspnet", state.get("head.classifier.weight")
    else:
        return None
    if last is None or last.dim() != 4 or not len(last):
        return None
    if "pretrained.net.features.17.conv.7.weight" in state:
        return head, "mobilenet_v2", len(last)
    blocks = {key.split(".")[2] for key in state if key.startswith("pretrained.layer3.")}
    bottleneck = "pretrained.layer3.0.conv3.weight" in state
    backbone = _RESNETS.get((len(blocks), bottleneck))
    if backbone is None or "pretrained.conv3.weight" not in state:
        return None
    return head, backbone, len(last)


def load(state: dict[str, Tensor], origin: str) -> tuple[nn.Module, str, int]:
    """Build the network of a segmentation checkpoint and fill it.

    Args:
        state: Tensors under their keys.
        origin: The file, for messages.

    Returns:
        The network in evaluation mode, its name in `lfd.models.MODELS`, and K.

    Raises:
        CheckpointError: Not of the family, of another width, or not complete.
    """
    found = _identify(state)
    if found is None:
        raise CheckpointError(
            f"{origin}: is no segmentation checkpoint of the CIRKD family; expected the state_dict of its DeepLabV3 "
            "or PSPNet on ResNet-18, -50 or -101 with the deep stem, or on MobileNetV2"
        )
    head, backbone, k = found
    name = f"{head}_{backbone}_os8"
    model = _BUILD[head](backbone, 8, k)
    wanted, ours, renamed = model.state_dict(), _names(state), rename(state)
    for key, tensor in state.items():
        expected = wanted.get(ours[key])
        if expected is not None and expected.shape != tensor.shape:
            raise CheckpointError(
                f"{origin}: {key!r} has shape {tuple(tensor.shape)}; {name} expects {tuple(expected.shape)}. "
                "The CIRKD repository changed its heads' widths later; expected the CVPR 2022 paper's"
            )
    try:
        fill(model, renamed, origin)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, as {name}") from error
    return model.eval(), name, k
