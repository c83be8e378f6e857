from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfd.config import DataConfig
from lfd.preprocess import fit_frame
from lfd.spec import Preprocess
from lfd.transforms import Crop, Window, apply_crop, color_table, draw_crop

side = st.integers(1, 60)
size = st.tuples(side, side)
plain = DataConfig(scale=(1.0, 1.0), flip=False, jitter=0.0)


@given(size, size, size, st.sampled_from(["stretch", "letterbox"]), st.floats(0.1, 4), st.integers(0, 2**31))
def test_a_crop_has_its_size_and_labels_stay_on_their_pixels(frame_hw, base_hw, size_hw, resize, scale, seed) -> None:
    """The picture's values are its labels, so that after any crop they must still agree."""
    preprocess = Preprocess(base_hw, (1.0, 1.0, 1.0), resize=resize)
    config = DataConfig(scale=(scale, scale), jitter=0.0)
    mask = np.zeros(frame_hw, np.uint8)
    mask[:, frame_hw[1] // 2 :] = 10
    image = np.repeat(mask[..., None], 3, 2) * 20
    crop = draw_crop(frame_hw, preprocess, size_hw, config, np.random.default_rng(seed))
    out, labels = apply_crop(image, mask, crop, preprocess, 255)
    assert out.shape == (*size_hw, 3) and labels.shape == size_hw
    assert (out[labels == 255] == 255).all()
    for value in (0, 10):
        inside = out[labels == value].astype(int)
        # Interpolation mixes the two halves at their border, by at most half of the difference.
        assert not inside.size or np.abs(inside - 20 * value).max() <= 101


@given(size, size, size, st.floats(0.1, 4), st.integers(0, 2**31))
def test_windows_lie_inside_picture_and_crop(frame_hw, base_hw, crop_hw, scale, seed) -> None:
    config = DataConfig(scale=(scale, 2 * scale))
    crop = draw_crop(frame_hw, Preprocess(base_hw), crop_hw, config, np.random.default_rng(seed))
    for window, hw in ((crop.source, frame_hw), (crop.destination, crop_hw)):
        assert min(window.top, window.left) >= 0 and min(window.size_hw) >= 1
        assert window.top + window.height <= hw[0] and window.left + window.width <= hw[1]
    assert crop == draw_crop(frame_hw, Preprocess(base_hw), crop_hw, config, np.random.default_rng(seed))


def test_scale_one_is_what_the_runtime_shows() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    mask = rng.integers(0, 5, (40, 60), np.uint8)
    preprocess = Preprocess((24, 30))
    out, _ = apply_crop(image, mask, draw_crop((40, 60), preprocess, (24, 30), plain, rng), preprocess, 255)
    assert np.array_equal(out, fit_frame(image, preprocess))
    same, labels = apply_crop(
        image, mask, draw_crop((40, 60), Preprocess((40, 60)), (40, 60), plain, rng), preprocess, 255
    )
    assert np.array_equal(same, image) and np.array_equal(labels, mask)


def test_a_mirror_and_a_window_by_hand() -> None:
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    crop = Crop(Window(1, 2, 2, 2), Window(0, 1, 2, 2), (2, 3), flip=True)
    out, labels = apply_crop(image, mask, crop, Preprocess((4, 4), (1.0, 0.0, 0.0)), 99)
    assert labels.tolist() == [[7, 6, 99], [11, 10, 99]]
    assert out[0].tolist() == [image[1, 3].tolist(), image[1, 2].tolist(), [0, 0, 255]]  # RGB red, written BGR
    moved = apply_crop(image[crop.source.slices], mask[crop.source.slices], crop.at_origin(), Preprocess((4, 4)), 99)
    assert np.array_equal(moved[1], labels)


def test_mirrored_half_of_the_time() -> None:
    config = DataConfig(scale=(1.0, 1.0), jitter=0.0)
    crops = [draw_crop((8, 8), Preprocess((8, 8)), (8, 8), config, np.random.default_rng(n)) for n in range(400)]
    assert 150 < sum(crop.flip for crop in crops) < 250


@pytest.mark.parametrize(("sampling", "below_one"), [("log", 1 / 2), ("uniform", 1 / 3)])
def test_the_scale_has_its_distribution(sampling: str, below_one: float) -> None:
    """Of [0.5, 2], half is below 1 log-uniformly, a third uniformly."""
    config = DataConfig(scale=(0.5, 2.0), scale_sampling=sampling)
    scales = [
        draw_crop((100, 100), Preprocess((1000, 1000)), (2000, 2000), config, np.random.default_rng(n)).destination
        for n in range(2000)
    ]
    heights = np.array([window.height for window in scales]) / 1000
    assert heights.min() >= 0.5 and heights.max() <= 2
    assert abs((heights < 1).mean() - below_one) < 0.04  # 3.6 standard deviations


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_jitter_keeps_shape_and_order_of_levels(strength: float) -> None:
    config = DataConfig(scale=(1.0, 1.0), flip=False, jitter=strength)
    preprocess = Preprocess((1, 256))
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    crop = draw_crop((1, 256), preprocess, (1, 256), config, np.random.default_rng(1))
    out, _ = apply_crop(ramp, ramp[..., 0], crop, preprocess, 255)
    assert out.shape == ramp.shape and (np.diff(out.astype(int), axis=1) >= 0).all()
    assert np.array_equal(out, ramp) == (strength == 0) == crop.keeps_colors


def test_the_color_table_is_gain_around_the_middle_then_shift() -> None:
    table = color_table(Crop(Window(0, 0, 1, 1), Window(0, 0, 1, 1), (1, 1), gain=(1.0, 2.0, 0.5), shift=10.0))
    assert table.shape == (256, 3) and table.dtype == np.uint8
    assert table[128].tolist() == [138, 138, 138]
    assert table[100].tolist() == [110, 82, 124] and table[255].tolist() == [255, 255, 201]
