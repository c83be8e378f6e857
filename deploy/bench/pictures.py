"""Which pictures a benchmark uses: frames for the clock, an even choice to score, some to show, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lfd.data.base import Dataset
from lfd.preprocess import Image
from lfd.spec import Labels

MAX_FRAMES = 32
MAX_FRAME_BYTES = 64 << 20
"""Frames that every process keeps for the clock: enough to vary, few enough to leave the memory to the model."""


@dataclass(frozen=True)
class Pictures:
    """Where frames and labels come from.

    Attributes:
        dataset: Real frames, and labels to score on.
        name: For the report, without a path.
        must_score: Whether classes other than the models' are an error; else the data set then
            only gives frames.
        labelled: Whether there are labels; else it only gives frames.
    """

    dataset: Dataset
    name: str
    must_score: bool = True
    labelled: bool = True


@dataclass(frozen=True)
class Shown:
    """A picture for the report, with what each model made of it.

    Attributes:
        name: The picture's.
        frame: (H, W, 3) BGR uint8.
        truth: (H, W) label values.
        maps: Model's name to its (H, W) class map.
        labels: The classes.
    """

    name: str
    frame: Image
    truth: Image
    maps: Mapping[str, Image]
    labels: Labels


def spread(length: int, wanted: int | None) -> list[int]:
    """Return `wanted` indices, or all, spread evenly over a set of `length`."""
    count = length if wanted is None else min(length, wanted)
    return [index * length // count for index in range(count)]


def timing_frames(dataset: Dataset) -> tuple[list[Image], str]:
    """Return frames for the clock, decoded, and their SHA-256; at least one, bounded in number and bytes."""
    frames: list[Image] = []
    digest = hashlib.sha256()
    room = MAX_FRAME_BYTES
    for index in spread(len(dataset), MAX_FRAMES):
        image = dataset[index].image
        room -= image.nbytes
        if frames and room < 0:
            break
        frames.append(image)
        hash_pixels(digest, image)
    return frames, digest.hexdigest()


def hash_pixels(digest: Any, pixels: Image) -> None:
    """Add a picture's shape and bytes to a hash of hashlib."""
    digest.update(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
