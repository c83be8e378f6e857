from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lfd.config import DataConfig
from lfd.device_transforms import apply_crops
from lfd.spec import Preprocess
from lfd.transforms import Crop, Window, apply_crop, draw_crop

CPU = torch.device("cpu")
side = st.integers(1, 90)
size = st.tuples(side, side)

DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"),
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")],
    ),
]


def compare(
    seed: int,
    frames: list[tuple[int, int]],
    crops: list[Crop],
    preprocess: Preprocess,
    device: torch.device,
    mean: float = 1.0,
) -> None:
    """Hold a batch against OpenCV's crops, one by one, on noise: the hardest picture to resize alike.

    Args:
        mean: Allowed mean difference of a crop without jitter, in levels.
    """
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*hw, 3), np.uint8) for hw in frames]
    masks = [rng.integers(0, 256, hw, np.uint8) for hw in frames]
    given = [image.copy() for image in images]
    out, target = apply_crops(
        [torch.from_numpy(i) for i in images], [torch.from_numpy(m) for m in masks], crops, preprocess, 255, device
    )
    assert out.dtype == torch.uint8 and target.dtype == torch.int64
    assert out.device.type == target.device.type == device.type
    assert out.is_contiguous() and out.shape == (len(crops), 3, *crops[0].crop_hw)
    for b, (image, mask, crop) in enumerate(zip(images, masks, crops, strict=True)):
        expected, labels = apply_crop(image, mask, crop, preprocess, 255)
        assert np.array_equal(target[b].cpu().numpy(), labels)
        difference = np.abs(out[b].permute(1, 2, 0).cpu().numpy().astype(int) - expected)
        # A level of OpenCV's fixed point, and what the jitter's gain and truncation make of it.
        assert difference.max() <= (1 if crop.keeps_colors else np.ceil(max(crop.gain)))
        assert not crop.keeps_colors or difference.mean() <= mean
        assert np.array_equal(image, given[b])  # a cached picture is not written to


@pytest.mark.parametrize("device", DEVICES)
@given(
    frames=st.lists(size, min_size=1, max_size=3),
    base_hw=size,
    crop_hw=size,
    resize=st.sampled_from(["stretch", "letterbox"]),
    scale=st.floats(0.1, 4),
    jitter=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_any_crop_is_opencvs(device, frames, base_hw, crop_hw, resize, scale, jitter, seed) -> None:
    preprocess = Preprocess(base_hw, resize=resize)
    config = DataConfig(scale=(scale, scale), jitter=jitter)
    rng = np.random.default_rng(seed)
    crops = [draw_crop(hw, preprocess, crop_hw, config, rng) for hw in frames]
    compare(seed, frames, crops, preprocess, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", [(180, 240), (360, 480), (362, 481), (1024, 2048), (97, 1031), (540, 720)])
def test_real_sizes_are_opencvs(device, source) -> None:
    """Up and down, by whole ratios and others, with ties among the nearest pixels."""
    for height, width in ((180, 240), (90, 160), (121, 163), (180, 120)):
        crop = Crop(Window(0, 0, *source), Window(1, 2, height, width), (height + 1, width + 3), flip=True)
        compare(0, [source], [crop], Preprocess((4, 4)), device, mean=0.2)


@given(size, size)
def test_the_same_crop_from_the_window_alone(frame_hw, crop_hw) -> None:
    """The loader sends no more than the source window."""
    rng = np.random.default_rng(0)
    crop = draw_crop(frame_hw, Preprocess((50, 50)), crop_hw, DataConfig(), rng)
    image, mask = (torch.from_numpy(rng.integers(0, 256, s, np.uint8)) for s in ((*frame_hw, 3), frame_hw))
    whole = apply_crops([image], [mask], [crop], Preprocess((50, 50)), 255, CPU)
    y, x = crop.source.slices
    part = apply_crops([image[y, x]], [mask[y, x]], [crop.at_origin()], Preprocess((50, 50)), 255, CPU)
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))


def test_an_area_average_by_hand() -> None:
    """3 pixels in 1.5 cells each way: the middle pixel is shared, OpenCV's INTER_AREA."""
    image = torch.zeros(5, 5, 3, dtype=torch.uint8)
    image[2, 2] = 250
    crop = Crop(Window(0, 0, 5, 5), Window(0, 0, 2, 2), (2, 2))
    out, _ = apply_crops([image], [torch.zeros(5, 5, dtype=torch.uint8)], [crop], Preprocess((2, 2)), 255, CPU)
    assert out.unique().tolist() == [10]  # 250 * (0.5 / 2.5)^2
    assert (cv2.resize(image.numpy(), (2, 2), interpolation=cv2.INTER_AREA) == 10).all()
