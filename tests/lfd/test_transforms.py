from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfd.preprocess import fit_frame
from lfd.spec import Preprocess
from lfd.transforms import augment, jitter_colors, random_crop

side = st.integers(1, 60)
size = st.tuples(side, side)


@given(size, size, size, st.sampled_from(["stretch", "letterbox"]), st.floats(0.1, 4), st.integers(0, 2**31))
def test_a_crop_has_its_size_and_labels_stay_on_their_pixels(frame_hw, base_hw, size_hw, resize, scale, seed) -> None:
    """The picture's values are its labels, so that after any crop they must still agree."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(frame_hw, np.uint8)
    mask[:, frame_hw[1] // 2 :] = 10
    image = np.repeat(mask[..., None], 3, 2) * 20
    out, labels = random_crop(
        image, mask, Preprocess(base_hw, (1.0, 1.0, 1.0), resize=resize), size_hw, (scale, scale), rng, 255
    )
    assert out.shape == (*size_hw, 3) and labels.shape == size_hw
    assert (out[labels == 255] == 255).all()
    for value in (0, 10):
        inside = out[labels == value].astype(int)
        # Interpolation mixes the two halves at their border, by at most half of the difference.
        assert not inside.size or np.abs(inside - 20 * value).max() <= 101


def test_scale_one_is_what_the_runtime_shows() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    mask = rng.integers(0, 5, (40, 60), np.uint8)
    preprocess = Preprocess((24, 30))
    out, _ = random_crop(image, mask, preprocess, (24, 30), (1.0, 1.0), rng, 255)
    assert np.array_equal(out, fit_frame(image, preprocess))
    same, labels = random_crop(image, mask, Preprocess((40, 60)), (40, 60), (1.0, 1.0), rng, 255)
    assert np.array_equal(same, image) and np.array_equal(labels, mask)


def test_mirrored_half_of_the_time_and_jointly() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    image[:, :4], mask[:, :4] = 200, 1
    flips = 0
    for seed in range(400):
        out, labels = augment(
            image, mask, Preprocess((8, 8)), (8, 8), (1, 1), True, 0, np.random.default_rng(seed), 255
        )
        assert np.array_equal(out[..., 0] == 200, labels == 1)
        flips += int(labels[0, 0] == 0)
    assert 150 < flips < 250


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_jitter_keeps_shape_and_order_of_levels(strength: float) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    out = jitter_colors(ramp, strength, np.random.default_rng(1))
    assert out.shape == ramp.shape and (np.diff(out.astype(int), axis=1) >= 0).all()
    assert np.array_equal(out, ramp) == (strength == 0)
