from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfd.preprocess import content_box, fit_frame, resize_image, resize_labels, restore_map
from lfd.spec import Preprocess

side = st.integers(1, 90)
size = st.tuples(side, side)
mode = st.sampled_from(["stretch", "letterbox"])


@given(size, size, mode)
def test_the_content_lies_inside_and_keeps_the_aspect(
    frame_hw: tuple[int, int], size_hw: tuple[int, int], resize
) -> None:
    top, left, h, w = content_box(frame_hw, Preprocess(size_hw, resize=resize))
    assert 0 <= top <= top + h <= size_hw[0]
    assert 0 <= left <= left + w <= size_hw[1]
    if resize == "letterbox":
        assert h == size_hw[0] or w == size_hw[1]
        scale = min(size_hw[0] / frame_hw[0], size_hw[1] / frame_hw[1])
        assert abs(h - frame_hw[0] * scale) <= 1 and abs(w - frame_hw[1] * scale) <= 1


@given(size, size, mode)
def test_shapes_hold_for_any_sizes(frame_hw: tuple[int, int], size_hw: tuple[int, int], resize) -> None:
    preprocess = Preprocess(size_hw, resize=resize)
    frame = np.random.default_rng(0).integers(0, 256, (*frame_hw, 3), np.uint8)
    fitted = fit_frame(frame, preprocess)
    assert fitted.shape == (*size_hw, 3) and fitted.dtype == np.uint8 and fitted.flags.c_contiguous
    restored = restore_map(fitted[..., 0].copy(), preprocess, frame_hw)
    assert restored.shape == frame_hw


@given(size, st.integers(1, 3), st.integers(1, 3))
def test_a_class_map_comes_back_whole_from_an_integer_enlargement(frame_hw: tuple[int, int], fy: int, fx: int) -> None:
    labels = np.random.default_rng(1).integers(0, 11, frame_hw, np.uint8)
    large = resize_labels(labels, (frame_hw[0] * fy, frame_hw[1] * fx))
    assert np.array_equal(large, labels.repeat(fy, 0).repeat(fx, 1))
    assert np.array_equal(resize_labels(large, frame_hw), labels)


@given(size, size)
def test_no_label_is_invented(frame_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
    labels = np.random.default_rng(2).choice(np.array([0, 3, 255], np.uint8), frame_hw)
    assert set(np.unique(resize_labels(labels, size_hw))) <= {0, 3, 255}


@pytest.mark.parametrize(("color", "bgr"), [("RGB", (76, 128, 26)), ("BGR", (26, 128, 76))])
def test_bars_have_the_mean_colour(color, bgr: tuple[int, int, int]) -> None:
    preprocess = Preprocess((8, 8), mean=(0.1, 0.5, 0.3), resize="letterbox", color=color)
    fitted = fit_frame(np.full((4, 8, 3), 255, np.uint8), preprocess)
    assert tuple(fitted[0, 0]) == bgr and tuple(fitted[7, 7]) == bgr
    assert (fitted[2:6] == 255).all()


@given(size, st.integers(1, 3))
def test_a_whole_power_of_two_is_the_area_average(size_hw: tuple[int, int], halvings: int) -> None:
    """Up to the rounding of each halving, half a level."""
    factor = 2**halvings
    hw = (size_hw[0] * factor, size_hw[1] * factor)
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    mean = image.reshape(size_hw[0], factor, size_hw[1], factor, 3).mean((1, 3))
    assert np.abs(resize_image(image, size_hw) - mean).max() <= 0.5 * halvings


@pytest.mark.parametrize("hw", [(720, 1280), (1080, 1920), (541, 961), (362, 1022)])
def test_a_fine_pattern_does_not_alias(hw: tuple[int, int]) -> None:
    """Stripes a pixel wide become the grey between them; bilinear alone would pick one of the two."""
    image = np.zeros((*hw, 3), np.uint8)
    image[:, ::2] = 200
    small = resize_image(image, (180, 240))
    assert np.abs(small.astype(int) - 100).max() <= 27  # a fifth of a cell, where the ratio is not whole
    if hw[1] % 2 == 0:
        assert (small == 100).all()
