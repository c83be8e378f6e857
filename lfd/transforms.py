"""Random scale, crop, mirror and colour, jointly for picture and labels, in numpy and OpenCV.

What is random about a sample is drawn once, as a `Crop`; making it is then plain geometry, here with
OpenCV and in `lfd.device_transforms` with torch. OpenCV because it is what the runtime resizes with,
and a crop with one resize costs 0.3 ms at 240x180 where torchvision's chain of resize, pad and crop
on full-size tensors costs several.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from lfd.config import DataConfig
from lfd.preprocess import Image, content_box, mean_color, resize_image, resize_labels
from lfd.spec import Preprocess


class Window(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of its pixels in an (H, W, ...) array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Crop:
    """Everything random about a training sample.

    Attributes:
        source: Part of the picture that is shown, in the picture's pixels.
        destination: Part of the crop that it fills, in the crop's pixels, before the mirror.
        crop_hw: Size of the crop.
        flip: Mirror the crop left to right.
        gain: Contrast factor of each channel around the level 128, in the picture's order (BGR).
        shift: Levels added to all channels.
    """

    source: Window
    destination: Window
    crop_hw: tuple[int, int]
    flip: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: float = 0.0

    @property
    def keeps_colors(self) -> bool:
        """Whether its colour table changes nothing."""
        return self.gain == (1.0, 1.0, 1.0) and self.shift == 0.0

    def at_origin(self) -> Crop:
        """Return the same crop of a picture that is nothing but the source window."""
        return dataclasses.replace(self, source=Window(0, 0, *self.source.size_hw))


def _window(length: int, scaled: float, wanted: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Choose along one axis which part of the picture fills which part of the crop.

    Args:
        length: Of the picture, in its pixels.
        scaled: Length of the whole picture in the crop's pixels.
        wanted: Of the crop.
        rng: Chooses the offset.
    """
    if scaled >= wanted:
        part = min(length, max(1, round(length * wanted / scaled)))
        start = int(rng.integers(0, length - part + 1))
        return slice(start, start + part), slice(0, wanted)
    part = max(1, round(scaled))
    start = int(rng.integers(0, wanted - part + 1))
    return slice(0, length), slice(start, start + part)


def _rectangle(y: slice, x: slice) -> Window:
    return Window(y.start, x.start, y.stop - y.start, x.stop - x.start)


def draw_crop(
    frame_hw: tuple[int, int],
    preprocess: Preprocess,
    crop_hw: tuple[int, int],
    config: DataConfig,
    rng: np.random.Generator,
) -> Crop:
    """Draw a sample's scale, place, mirror and colours.

    A scale of 1 is the size at which the runtime shows the picture to the model.

    Args:
        frame_hw: Size of the picture.
        preprocess: Size and fit of the model.
        crop_hw: Size of the crop.
        config: How much is varied: `scale`, `scale_sampling`, `flip` and `jitter`.
        rng: Source of randomness; nothing else about a sample is random.
    """
    _, _, h, w = content_box(frame_hw, preprocess)
    low, high = config.scale
    if config.scale_sampling == "log":
        factor = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    else:
        factor = float(rng.uniform(low, high))
    src_y, dst_y = _window(frame_hw[0], h * factor, crop_hw[0], rng)
    src_x, dst_x = _window(frame_hw[1], w * factor, crop_hw[1], rng)
    crop = Crop(_rectangle(src_y, src_x), _rectangle(dst_y, dst_x), crop_hw, config.flip and rng.random() < 0.5)
    if config.jitter == 0:
        return crop
    strength = config.jitter
    b, g, r = (1 + rng.uniform(-strength, strength) + rng.uniform(-strength, strength, 3) * 0.25).tolist()
    return dataclasses.replace(crop, gain=(b, g, r), shift=255 * rng.uniform(-strength, strength) * 0.5)


def color_table(crop: Crop) -> Image:
    """Return what the crop's contrast, brightness and colour cast make of each level, (256, 3) uint8."""
    levels = np.arange(256, dtype=np.float32)[:, None]
    table: Image = np.clip((levels - 128) * np.array(crop.gain) + 128 + crop.shift, 0, 255).astype(np.uint8)
    return table


def apply_crop(image: Image, mask: Image, crop: Crop, preprocess: Preprocess, fill: int) -> tuple[Image, Image]:
    """Make a crop and its labels, (h, w, 3) BGR uint8 and (h, w) uint8, both contiguous.

    Where the picture ends the crop has the mean colour, and `fill` for a label.

    Args:
        image: (H, W, 3) BGR uint8.
        mask: (H, W) uint8.
        crop: Drawn for a picture of this size.
        preprocess: Mean of the model.
        fill: Label value of what lies outside.
    """
    source, destination, size = crop.source.slices, crop.destination.slices, crop.destination.size_hw
    out: Image = np.empty((*crop.crop_hw, 3), np.uint8)
    out[:] = mean_color(preprocess)
    out_mask: Image = np.full(crop.crop_hw, fill, np.uint8)
    out[destination] = resize_image(image[source], size)
    out_mask[destination] = resize_labels(np.ascontiguousarray(mask[source]), size)
    if crop.flip:
        out, out_mask = np.ascontiguousarray(out[:, ::-1]), np.ascontiguousarray(out_mask[:, ::-1])
    if not crop.keeps_colors:
        out = np.asarray(cv2.LUT(out, color_table(crop)[None]), dtype=np.uint8)
    return out, out_mask
