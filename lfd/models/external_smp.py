"""segmentation_models_pytorch's networks, as `smp:Arch/encoder`: SegFormer, U-Net, FPN, UPerNet and the rest.

An optional extra. Keys and module paths are smp's own, so that its checkpoints fit and its documentation serves.
"""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lfd.errors import CheckpointError, UsageError, require, unknown
from lfd.models.external_outputs import adapt
from lfd.taps import first_line
from lfd.weights import check_values, fill, read_tensors

_CLASSIFIERS = ("fc", "classifier", "head", "last_linear", "_fc")
"""First parts of the keys that a classification checkpoint has behind its encoder."""

_WIDE_SEGFORMERS = ("mit_b2", "mit_b3", "mit_b4", "mit_b5")
"""Encoders whose decoder has 768 channels in the paper (Xie et al. 2021) and its checkpoints; smp's default is 256."""


def _smp() -> ModuleType:
    return require("segmentation_models_pytorch", "smp")


def check_name(name: str) -> None:
    """Refuse a name that smp does not know.

    Raises:
        UsageError: Another form, or an unknown architecture or encoder; with the nearest known one.
        MissingDependencyError: smp is not installed.
    """
    arch, slash, encoder = name.partition("/")
    smp = _smp()
    names = {kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if arch not in names:
        raise unknown("architecture of smp", arch, names)
    if not slash or not encoder:
        raise UsageError(f"model 'smp:{name}'; expected smp:Arch/encoder, such as smp:{arch}/resnet18")
    if encoder.startswith("tu-"):  # timm's; only names, since timm would fetch `hf-hub:...` from there
        known, kind = require("timm", "smp").list_models(), "network of timm"
        wanted = encoder.removeprefix("tu-").partition(".")[0]
    else:
        known, kind, wanted = list(smp.encoders.get_encoder_names()), "encoder of smp", encoder
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UsageError(f"unknown {kind} {wanted!r}.{hint} {len(known)} are known, from {known[0]} to {known[-1]}")


def build(name: str, num_classes: int, weights: str) -> tuple[nn.Module, str]:
    """Build `Arch/encoder`; see `lfd.models.create_model`.

    A file of weights is a state_dict of the encoder, with or without a classifier behind it.

    Raises:
        UsageError: smp does not combine the two.
        CheckpointError: The weights cannot be had or do not fit.
    """
    arch, _, encoder_name = name.partition("/")
    ready = "imagenet" if weights == "imagenet" else None
    options: dict[str, Any] = {"dynamic_img_size": True} if arch == "DPT" else {}  # not ImageNet's 224x224 alone
    if arch == "Segformer" and encoder_name in _WIDE_SEGFORMERS:
        options["decoder_segmentation_channels"] = 768
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about the name of timm's weights, which it takes all the same
            network: nn.Module = _smp().create_model(arch, encoder_name, ready, 3, num_classes, **options)
    except Exception as error:  # no network, no such weights, or a pair that smp refuses
        if ready is None:
            raise UsageError(f"smp:{name} cannot be built ({first_line(error)}). Fix: another encoder") from error
        raise CheckpointError(
            f"smp:{name}: its encoder's ImageNet weights cannot be had ({first_line(error)}). Fix: give --weights FILE "
            "with the encoder's state_dict, or --weights none to start from random weights"
        ) from error
    encoder = network.get_submodule("encoder")
    origin = {"none": "random weights (weights none)", "imagenet": "smp's ImageNet weights"}.get(weights, weights)
    if weights not in ("none", "imagenet"):
        _fill_encoder(encoder, Path(weights))
    divides = bool(getattr(network, "requires_divisible_input_shape", True))
    multiple = int(encoder.output_stride) if divides else 1  # type: ignore[arg-type]
    model = adapt(network, num_classes, _taps(arch, encoder), encoder_name, multiple)
    return model, f"smp:{name}: encoder {encoder_name} starts from {origin}"


def _taps(arch: str, encoder: nn.Module) -> dict[str, str]:
    """Name what the head is given, and the encoder's features, of which number i has stride 2^i where not dilated."""
    if arch == "DPT":  # four depths of a transformer, all at the stride of its patches, and the class tokens
        return {"deep": "segmentation_head:input", **{f"stage{i + 1}": f"encoder:0:{i}" for i in range(4)}}
    widths: list[int] = list(encoder.out_channels)  # type: ignore[arg-type]
    stages = {f"stage{i - 1}": f"encoder:{i}" for i in range(2, len(widths)) if widths[i]}
    return {"deep": "segmentation_head:input", **stages}


def _fill_encoder(encoder: nn.Module, path: Path) -> None:
    state = {key.removeprefix("encoder."): value for key, value in read_tensors(path).items()}
    check_values(state, str(path))
    wanted = encoder.state_dict()
    extra = {key for key in state if key not in wanted and key.partition(".")[0] in _CLASSIFIERS}
    fill(encoder, {k: v for k, v in state.items() if k not in extra}, str(path))
