"""ImageNet weights for a backbone: from torchvision, from a file, or none, and always said which."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from lfd.errors import CheckpointError
from lfd.weights import read_tensors

_CLASSIFIER = ("fc.", "classifier.")
"""Prefixes of what a classification checkpoint has and a backbone has not."""


def load_backbone(model: nn.Module, name: str, weights: str) -> str:
    """Fill `model.backbone`.

    Args:
        model: A network of ours; `model.backbone_name` is torchvision's name of its backbone.
        name: The network's name, for messages.
        weights: `imagenet`, `none` or a path.

    Returns:
        A sentence for the user.

    Raises:
        CheckpointError: The weights cannot be downloaded, or do not fit.
    """
    arch = str(model.backbone_name)
    if weights == "none":
        return f"{name}: backbone {arch} starts from random weights (weights none)"
    if weights == "imagenet":
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
        origin = f"torchvision's {choice}"
    else:
        state = read_tensors(Path(weights))
        origin = weights
    backbone = model.get_submodule("backbone")
    _load(backbone, state, origin, arch)
    return f"{name}: backbone {arch} starts from {origin}"


def _load(backbone: nn.Module, state: dict[str, Tensor], origin: str, arch: str) -> None:
    found = {k.removeprefix("features."): v for k, v in state.items() if not k.startswith(_CLASSIFIER)}
    wanted = backbone.state_dict()
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{origin}: lacks {len(missing)} of {len(wanted)} tensors of {arch}, the first {missing[0]!r}; "
            "expected torchvision's classification checkpoint of that network"
        )
    shapes = [k for k in wanted if k in found and found[k].shape != wanted[k].shape]
    if shapes:
        key = shapes[0]
        raise CheckpointError(
            f"{origin}: {key!r} has shape {tuple(found[key].shape)}; {arch} expects {tuple(wanted[key].shape)}"
        )
    backbone.load_state_dict({k: found.get(k, v) for k, v in wanted.items()})
