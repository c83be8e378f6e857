"""Samples on their way from a loader process to the device, packed as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfd.errors import LfdError
from lfd.preprocess import Image
from lfd.transforms import Crop


class Item(NamedTuple):
    """A sample on its way through the loader: its crop, or with `crop` what that is to be made of.

    Where `unlabelled`, its mask is 0 inside the picture, so that what lies beside it can still be told by its void.
    """

    image: Image
    mask: Image
    crop: Crop | None
    picture: int
    unlabelled: bool


class Packed(NamedTuple):
    """Samples as one tensor: (N,) uint8, the pixels of each picture and its labels behind them.

    One, because each tensor that a loader process hands over costs a file descriptor, a pinned copy
    and an upload.

    Attributes:
        pixels: All of them.
        shapes_hw: Of each picture.
        crops: To be made of them; none where they are made already.
        pictures: Index in the data set of each.
        unlabelled: Whether each has no label anywhere.
    """

    pixels: Tensor
    shapes_hw: list[tuple[int, int]]
    crops: list[Crop]
    pictures: list[int]
    unlabelled: list[bool]


def pack(items: list[Item | LfdError]) -> Packed | LfdError:
    """Return samples as one tensor; the first error, where there is one."""
    failed = next((item for item in items if isinstance(item, LfdError)), None)
    if failed is not None:
        return failed
    good = [item for item in items if isinstance(item, Item)]
    pixels = np.empty(sum(item.image.size + item.mask.size for item in good), np.uint8)
    end = 0
    for part in (part for item in good for part in (item.image, item.mask)):
        begin, end = end, end + part.size
        pixels[begin:end].reshape(part.shape)[:] = part
    return Packed(
        torch.from_numpy(pixels),
        [(item.mask.shape[0], item.mask.shape[1]) for item in good],
        [item.crop for item in good if item.crop is not None],
        [item.picture for item in good],
        [item.unlabelled for item in good],
    )


def unpack(pixels: Tensor, shapes_hw: Sequence[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return (H, W, 3) pictures and (H, W) labels, views of what `pack` packed."""
    parts = torch.split(pixels, [count * h * w for h, w in shapes_hw for count in (3, 1)])
    images = [part.view(h, w, 3) for part, (h, w) in zip(parts[::2], shapes_hw, strict=True)]
    return images, [part.view(h, w) for part, (h, w) in zip(parts[1::2], shapes_hw, strict=True)]
