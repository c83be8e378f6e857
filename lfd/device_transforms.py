"""The crops of `lfd.transforms` made with torch, for a GPU.

Decoded pictures go up once and everything after that is the GPU's, so that a loader process has
nothing to do but to decode.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lfd.preprocess import halved, mean_color, shrinks_twofold
from lfd.spec import Preprocess
from lfd.transforms import Crop, color_table


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; to CUDA by pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def apply_crops(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    crops: Sequence[Crop],
    preprocess: Preprocess,
    fill: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Make a batch of crops and their labels on a device.

    Labels are exactly those of `lfd.transforms.apply_crop`. Colours differ from it by at most one
    level before the jitter (OpenCV resizes 8-bit pictures in fixed point), and the jitter multiplies
    that by its gain. Twofold and more are shrunk by an exact area average: `F.interpolate`'s
    mode="area" takes whole pixels, the same pixel into two cells where the ratio is no integer, and
    on noise that is 5 levels off on average and up to 72.

    Args:
        images: (H, W, 3) BGR uint8, of any sizes, anywhere.
        masks: (H, W) uint8.
        crops: All of one `crop_hw`.
        preprocess: Mean of the model.
        fill: Label value of what lies outside.
        device: Where they are made.

    Returns:
        (B, 3, h, w) BGR uint8 and (B, h, w) int64, both contiguous, on the device.
    """
    height, width = crops[0].crop_hw
    color = upload(torch.from_numpy(mean_color(preprocess)), device)[:, None, None]
    out = color.expand(len(crops), 3, height, width).clone(memory_format=torch.contiguous_format)
    targets = torch.full((len(crops), height, width), fill, dtype=torch.int64, device=device)
    nearest = [
        _nearest(length, wanted)
        for crop in crops
        for length, wanted in zip(crop.source.size_hw, crop.destination.size_hw, strict=True)
    ]
    # One upload for all: many small ones cost more than the crops.
    indices = torch.split(upload(torch.cat(nearest), device), [len(index) for index in nearest])
    for b, (image, mask, crop) in enumerate(zip(images, masks, crops, strict=True)):
        y, x = crop.destination.slices
        out[b, :, y, x] = _resize(upload(image, device)[crop.source.slices], crop.destination.size_hw)
        rows, columns = indices[2 * b : 2 * b + 2]
        targets[b, y, x] = upload(mask, device)[crop.source.slices][rows[:, None], columns].long()
        if crop.flip:
            out[b], targets[b] = out[b].flip(-1), targets[b].flip(-1)
    if not all(crop.keeps_colors for crop in crops):
        tables = upload(torch.from_numpy(np.stack([color_table(crop).T for crop in crops])), device)
        out = tables.gather(2, out.flatten(2).long()).view_as(out)
    return out, targets


def _nearest(length: int, wanted: int) -> Tensor:
    """Return the (wanted,) int64 indices of the pixels that OpenCV takes for the nearest along an axis.

    Asked of OpenCV, because nobody agrees on ties: OpenCV 4 rounds in 16-bit fixed point, OpenCV 5 does
    not, and torch's nearest-exact differs from both by one pixel at some sizes.
    """
    ramp = np.arange(length, dtype=np.float32)[None]  # exact up to 2^24
    taken = cv2.resize(ramp, (wanted, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    return torch.from_numpy(taken.astype(np.int64))


def _resize(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize as `lfd.preprocess.resize_image`: (H, W, 3) uint8 to (3, h, w) uint8."""
    pixels = image.permute(2, 0, 1)
    hw = (image.shape[0], image.shape[1])
    while (half := halved(hw, size_hw)) != hw:
        pixels, hw = _to_uint8(F.avg_pool2d(pixels.float(), 2)), half
    if hw == size_hw:
        return pixels
    pixels = pixels.float()
    if shrinks_twofold(hw, size_hw):
        rows, columns = (_area_weights(n, m, image.device) for n, m in zip(hw, size_hw, strict=True))
        resized = rows @ pixels @ columns.T
    else:
        resized = F.interpolate(pixels[None], size_hw, mode="bilinear", align_corners=False)[0]
    return _to_uint8(resized)


def _to_uint8(pixels: Tensor) -> Tensor:
    """Round halves up, as OpenCV's fixed point does."""
    return (pixels + 0.5).to(torch.uint8)


def _area_weights(length: int, wanted: int, device: torch.device) -> Tensor:
    """Return (wanted, length) float32: the share of each pixel in each cell of length / wanted pixels.

    A matrix, since it is rare and a product of matrices is what a GPU does best. TensorFloat-32 would
    cost it a quarter of a level.
    """
    cell = length / wanted
    begin = torch.arange(wanted, device=device, dtype=torch.float32)[:, None] * cell
    pixel = torch.arange(length, device=device, dtype=torch.float32)
    covered = torch.minimum(pixel + 1, begin + cell) - torch.maximum(pixel, begin)
    return covered.clamp_min(0) / cell
