"""Random scale, crop, mirror and colour, jointly for picture and labels, in numpy and OpenCV.

OpenCV because it is what the runtime resizes with, and a crop with one resize costs 0.3 ms at 240x180
where torchvision's chain of resize, pad and crop on full-size tensors costs several.
"""

from __future__ import annotations

import cv2
import numpy as np

from lfd.preprocess import Image, content_box, resize_image, resize_labels
from lfd.spec import Preprocess


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


def random_crop(
    image: Image,
    mask: Image,
    preprocess: Preprocess,
    crop_hw: tuple[int, int],
    scale: tuple[float, float],
    rng: np.random.Generator,
    fill: int,
) -> tuple[Image, Image]:
    """Return a crop out of the randomly scaled picture, and its labels.

    A scale of 1 is the size at which the runtime shows the picture to the model. Where the picture
    ends the crop has the mean colour and void labels.

    Args:
        image: (H, W, 3) BGR uint8.
        mask: (H, W) uint8.
        preprocess: Size, fit and mean of the model.
        crop_hw: Size of the crop.
        scale: Range, drawn log-uniformly.
        rng: Source of randomness.
        fill: Label value of what lies outside.
    """
    height, width = crop_hw
    _, _, h, w = content_box((image.shape[0], image.shape[1]), preprocess)
    factor = float(np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]))))
    src_y, dst_y = _window(image.shape[0], h * factor, height, rng)
    src_x, dst_x = _window(image.shape[1], w * factor, width, rng)
    size = (dst_y.stop - dst_y.start, dst_x.stop - dst_x.start)
    mean = preprocess.mean[::-1] if preprocess.color == "RGB" else preprocess.mean
    out: Image = np.empty((height, width, 3), np.uint8)
    out[:] = np.clip(np.round(np.array(mean) * 255), 0, 255)
    out_mask: Image = np.full((height, width), fill, np.uint8)
    out[dst_y, dst_x] = resize_image(image[src_y, src_x], size)
    out_mask[dst_y, dst_x] = resize_labels(np.ascontiguousarray(mask[src_y, src_x]), size)
    return out, out_mask


def jitter_colors(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Vary contrast, brightness and colour cast by one table look-up a channel.

    Args:
        image: (H, W, 3) BGR uint8.
        strength: Half-width of the contrast factor; brightness and cast follow it.
        rng: Source of randomness.
    """
    if strength == 0:
        return image
    levels = np.arange(256, dtype=np.float32)
    gain = 1 + rng.uniform(-strength, strength) + rng.uniform(-strength, strength, 3) * 0.25
    shift = 255 * rng.uniform(-strength, strength) * 0.5
    table = np.clip((levels[:, None] - 128) * gain[None] + 128 + shift, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table[None]), dtype=np.uint8)


def augment(
    image: Image,
    mask: Image,
    preprocess: Preprocess,
    crop_hw: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    jitter: float,
    rng: np.random.Generator,
    fill: int,
) -> tuple[Image, Image]:
    """Return a training crop, (h, w, 3) BGR uint8 and (h, w) uint8, both contiguous."""
    image, mask = random_crop(image, mask, preprocess, crop_hw, scale, rng, fill)
    if flip and rng.random() < 0.5:
        image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    return jitter_colors(image, jitter, rng), mask
