from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.frames import Cause, Frame, State, StreamStatus
from deploy.overlay import ALERT, GLASS, PANEL, Overlay, blend, describe_loss, palette, render_legend
from lfd.preprocess import content_box, fit_frame, restore_map
from lfd.spec import Labels, Preprocess

sizes = st.tuples(st.integers(1, 90), st.integers(1, 120))


def labels(count: int) -> Labels:
    return Labels(tuple(f"class {i}" for i in range(count)), tuple((i, 255 - i, 7 * i % 256) for i in range(count)))


@given(count=st.integers(1, 255))
def test_palette_is_bgr_and_black_beyond_the_classes(count: int) -> None:
    table = palette(labels(count))
    assert table.shape == (256, 1, 3)
    assert [tuple(c[::-1]) for c in table[:count, 0].tolist()] == list(labels(count).colors)
    assert not table[count:].any()


@settings(deadline=None)
@given(size=sizes, alpha=st.sampled_from([0.0, 0.25, 0.5, 1.0]), seed=st.integers(0, 99))
def test_blend_is_the_weighted_sum(size: tuple[int, int], alpha: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    classes = rng.integers(0, 256, size, np.uint8)
    table, kept = palette(labels(11)), image.copy()
    expected = (1 - alpha) * image + alpha * table[classes, 0].astype(float)
    assert np.abs(blend(image, classes, table, alpha) - expected).max() <= 1
    np.testing.assert_array_equal(image, kept)
    out = np.empty_like(image)
    assert blend(image, classes, table, alpha, out) is out
    np.testing.assert_array_equal(out, blend(image, classes, table, alpha))


@settings(deadline=None)
@given(size=sizes, count=st.integers(1, 60))
def test_paint_takes_any_size(size: tuple[int, int], count: int) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    painted = Overlay(labels(count)).paint(Frame(image, 0, 0), np.zeros(size, np.uint8))
    scale = painted.shape[0] // size[0]
    assert painted.shape == (size[0] * scale, size[1] * scale, 3) and 1 <= scale <= 8
    assert (image == 90).all()


@settings(deadline=None)
@given(frame=sizes, model=sizes, resize=st.sampled_from(["stretch", "letterbox"]))
def test_fit_and_restore_agree(frame: tuple[int, int], model: tuple[int, int], resize: str) -> None:
    preprocess = Preprocess(model, resize=resize)  # type: ignore[arg-type]
    image = np.full((*frame, 3), 255, np.uint8)
    fitted = fit_frame(image, preprocess)
    assert fitted.shape == (*model, 3) and fitted.flags.c_contiguous
    top, left, height, width = content_box(frame, preprocess)
    inside = np.zeros(model, np.uint8)
    inside[top : top + height, left : left + width] = 1
    # Only what the frame covers comes back, all of it, and at the frame's size.
    restored = restore_map(inside, preprocess, frame)
    assert restored.shape == frame and (restored == 1).all()


def test_the_legend_has_each_colour_on_a_dark_panel() -> None:
    image = np.full((360, 480, 3), 255, np.uint8)
    eleven = labels(11)
    painted = Overlay(eleven, alpha=0.0).paint(Frame(image, 0, 0), np.zeros((360, 480), np.uint8))
    assert painted.shape == image.shape
    legend, shown = render_legend(eleven, 15, 300, 240)
    assert legend is not None and shown == 11
    for color in eleven.colors:
        assert (legend == np.array(color[::-1])).all(2).any(), color
    background = painted[2, 2].astype(int)
    np.testing.assert_allclose(background, GLASS * 255 + (1 - GLASS) * PANEL, atol=1)
    assert (painted[200, 470] == 255).all()


def test_a_long_legend_says_how_many_are_missing() -> None:
    legend, shown = render_legend(labels(150), 15, 300, 400)
    assert legend is not None and shown == 18 and legend.shape[0] <= 300
    assert render_legend(labels(3), 15, 20, 400) == (None, 0)


def test_a_small_picture_is_enlarged() -> None:
    overlay = Overlay(labels(11))
    assert overlay.paint(Frame(np.zeros((64, 96, 3), np.uint8), 0, 0), np.zeros((64, 96), np.uint8)).shape[0] >= 192


def test_each_frame_is_painted_once_and_the_pace_is_shown() -> None:
    ticks = iter(range(0, 10**10, 40_000_000))
    overlay = Overlay(labels(2), clock_ns=lambda: next(ticks))
    frame = Frame(np.zeros((240, 320, 3), np.uint8), 0, 0)
    classes = np.zeros((240, 320), np.uint8)
    assert overlay.paint(frame, classes) is overlay.paint(frame, classes)
    before = overlay.paint(frame, classes)[-15:].copy()
    after = overlay.paint(Frame(frame.image, 1, 0), classes)[-15:]
    assert (before != after).any()


@pytest.mark.parametrize("name", ["Straße", "道路", "W" * 64])
def test_names_that_the_font_may_not_have(name: str) -> None:
    odd = Labels((name,), ((1, 2, 3),))
    Overlay(odd).paint(Frame(np.zeros((120, 160, 3), np.uint8), 0, 0), np.zeros((120, 160), np.uint8))


def test_a_painted_picture_holds_until_the_frame_after_the_next() -> None:
    overlay, classes = Overlay(labels(3)), np.zeros((240, 320), np.uint8)
    images = [np.full((240, 320, 3), 40 * index, np.uint8) for index in range(5)]
    painted = [overlay.paint(Frame(images[0], 0, 0), classes)]
    for index, image in enumerate(images[1:], 1):
        before = painted[-1].copy()
        painted.append(overlay.paint(Frame(image, index, 0), classes))
        np.testing.assert_array_equal(painted[-2], before)
    assert painted[0] is painted[2] and painted[1] is painted[3] and painted[0] is not painted[1]


@pytest.mark.parametrize("size", [(240, 320), (40, 60), (64, 96)])
def test_frames_of_changing_sizes(size: tuple[int, int]) -> None:
    """What is painted does not depend on what was painted before."""
    rng = np.random.default_rng(0)
    used, classes = Overlay(labels(3), clock_ns=lambda: 0), np.zeros(size, np.uint8)
    used.paint(Frame(np.zeros((360, 480, 3), np.uint8), 0, 0), np.zeros((360, 480), np.uint8))
    frame = Frame(rng.integers(0, 256, (*size, 3), np.uint8), 1, 0)
    fresh = Overlay(labels(3), clock_ns=lambda: 0)
    np.testing.assert_array_equal(used.paint(frame, classes), fresh.paint(frame, classes))


S = 10**9


@pytest.mark.parametrize(
    ("since_s", "heard_s", "cause", "retry_s", "expected"),
    [
        (7.0, 10.0, Cause.TIMED_OUT, 2.0, "no signal for 3 s: timed out, retry in 2 s"),
        (7.0, 8.7, Cause.REFUSED, 2.0, "no signal for 3 s: refused, retry in 1 s"),
        (7.0, 7.0, Cause.CLOSED, 2.0, "no signal for 3 s: closed, trying again"),
        (7.0, 7.0, None, None, "no signal for 3 s"),
        (-590.0, 10.0, Cause.UNREACHABLE, 30.0, "no signal for 10 min: unreachable, retry in 30 s"),
    ],
)
def test_the_banner_says_how_long_why_and_what_next(
    since_s: float, heard_s: float, cause: Cause | None, retry_s: float | None, expected: str
) -> None:
    status = StreamStatus(State.LOST, round(since_s * S), cause, "", 0, 1, retry_s)
    assert describe_loss(status, 10 * S, round(heard_s * S)) == expected


@pytest.mark.parametrize("size", [(24, 32), (240, 320), (720, 1280), (400, 90)])
def test_a_stale_picture_is_greyed_under_a_banner(size: tuple[int, int]) -> None:
    ticks = [0]
    overlay = Overlay(labels(3), clock_ns=lambda: ticks[0])
    status = StreamStatus(State.LOST, 0, Cause.TIMED_OUT, "", 0, 1, 5.0)
    assert overlay.stale(status) is None
    painted = overlay.paint(Frame(np.full((*size, 3), 200, np.uint8), 0, 0), np.zeros(size, np.uint8))
    kept = painted.copy()
    stale = overlay.stale(status)
    assert stale is not None and stale is not painted and stale.shape == painted.shape
    np.testing.assert_array_equal(painted, kept)
    assert stale.mean() > 20
    middle, edge = stale[stale.shape[0] // 2, 0].astype(int), stale[-stale.shape[0] // 6, -1].astype(int)
    assert middle[2] > 1.5 * max(middle[:2]) and ALERT[2] > 1.5 * max(ALERT[:2])
    assert (edge < painted[-stale.shape[0] // 6, -1]).all()
    ticks[0] = S // 10
    assert overlay.stale(status) is stale
    ticks[0] = 2 * S
    later = overlay.stale(status)
    assert later is not stale and (later != stale).any()
    ticks[0] = 3 * S
    again = overlay.paint(Frame(np.full((*size, 3), 200, np.uint8), 1, 3 * S), np.zeros(size, np.uint8))
    assert (again[again.shape[0] // 2, -1] == kept[again.shape[0] // 2, -1]).all()  # no banner, not greyed


def test_an_outage_is_not_the_models_pace() -> None:
    ticks = [0]
    overlay = Overlay(labels(3), clock_ns=lambda: ticks[0])
    classes = np.zeros((240, 320), np.uint8)

    def paint(index: int) -> np.ndarray:
        ticks[0] += 40_000_000
        frame = Frame(np.zeros((240, 320, 3), np.uint8), index, ticks[0])
        return overlay.paint(frame, classes)[-15:].copy()

    before = [paint(index) for index in range(3)][-1]
    ticks[0] += 3600 * S
    overlay.stale(StreamStatus(State.LOST, 0))
    paint(3)
    np.testing.assert_array_equal(paint(4), before)
