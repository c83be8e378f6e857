from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfd.preprocess import content_box, fit_frame, resize_labels, restore_map
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
