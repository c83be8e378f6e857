"""The catalogue of public checkpoints: where they are, what they are, and by what to know that they came whole.

torchvision's entries are read from the installed torchvision, the others from zoo.toml.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOGUE = Path(__file__).with_name("zoo.toml")

TORCHVISION_BACKBONES = (
    "resnet18",
    "resnet50",
    "resnet101",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
)
"""Backbones of the networks in `lfd.models` for which torchvision has ImageNet weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A published file of weights.

    Attributes:
        name: What `lfd-train fetch` takes.
        role: `teacher`, a segmentation network, or `backbone`, for `--weights`.
        network: A teacher's name for `lfd-train import --model`, "" where the file's keys tell it (the CIRKD
            family); a backbone's own name.
        file: Its name on disk.
        url: Where it is; "" where no program may fetch it.
        page: Where a person finds it, and what its authors say about it.
        sha256: Hexadecimal digits of its SHA-256 as published, all 64 or the first 8; "" where none is published.
        size_mb: 10^6 bytes, 0 where it is not published.
        classes: The data set whose classes it knows, as in `--data`, or `imagenet`.
        normalize: Its input, as `data.normalize`: `imagenet` or `caffe`.
        size: `HxW` it was scored at, "" where a picture's own size served.
        accuracy: As published.
        licence: Of the weights, as far as it is stated.
        note: What else its user must know.
    """

    name: str
    role: Literal["teacher", "backbone"]
    network: str
    file: str
    page: str
    classes: str
    normalize: Literal["imagenet", "caffe"]
    licence: str
    url: str = ""
    sha256: str = ""
    size_mb: float = 0.0
    size: str = ""
    accuracy: str = ""
    note: str = ""


@cache
def checkpoints() -> dict[str, Checkpoint]:
    """Return the catalogue by name; torchvision's entries are in it where torchvision is installed."""
    entries = _from_torchvision() if importlib.util.find_spec("torchvision") else []
    return {entry.name: entry for entry in entries} | _from_file()


def find(name: str) -> Checkpoint | None:
    """Return an entry of the catalogue, or None; torchvision is imported for its own names alone."""
    return _from_file().get(name) or (checkpoints().get(name) if name.startswith("torchvision:") else None)


@cache
def _from_file() -> dict[str, Checkpoint]:
    records = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))["checkpoint"]
    return {record["name"]: Checkpoint(**record) for record in records}


def _from_torchvision() -> list[Checkpoint]:
    import torchvision  # noqa: PLC0415  seconds, which nothing else here needs

    models = torchvision.models
    teachers = [
        _torchvisions(name, "teacher", weights, "voc", "520x520")
        for name in models.list_models(module=models.segmentation)
        for weights in models.get_model_weights(name)
    ]
    return teachers + [
        _torchvisions(name, "backbone", models.get_model_weights(name).DEFAULT, "imagenet", "224x224")
        for name in TORCHVISION_BACKBONES
    ]


def _torchvisions(name: str, role: Literal["teacher", "backbone"], weights: Any, classes: str, size: str) -> Checkpoint:
    """Return the entry of a member of one of torchvision's Weights enums."""
    file = PurePosixPath(urlsplit(weights.url).path).name
    digits = re.search(r"-([0-9a-f]{8})\.pth$", file)  # torch.hub's convention, which its check_hash goes by
    if digits is None:
        raise ValueError(f"torchvision's {weights} has no checksum in its file's name {file!r}")
    scores = [(data, values) for data, values in weights.meta["_metrics"].items()]
    accuracy = "; ".join(
        f"{values['miou']} % mIoU, {data}" if "miou" in values else f"{values['acc@1']} % top-1, {data}"
        for data, values in scores
    )
    return Checkpoint(
        name=f"torchvision:{name}",
        role=role,
        network=f"torchvision:{name}" if role == "teacher" else name,
        file=file,
        url=weights.url,
        page=weights.meta["recipe"],
        sha256=digits[1],
        size_mb=round(weights.meta["_file_size"] * 1.048576, 1),  # torchvision counts in MiB
        classes=classes,
        normalize="imagenet",
        size=size,
        accuracy=accuracy,
        licence="BSD-3-Clause; the data sets it was trained on have terms of their own",
        note=str(weights),
    )
