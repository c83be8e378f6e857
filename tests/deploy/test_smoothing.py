"""Results that are steadied over time, against slow rules written out pixel by pixel, and what flicker is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deploy.duration import parse_duration
from deploy.flicker import Flicker
from deploy.session import largest_class
from deploy.smoothing import SMOOTHERS, Smoothing, StreamSmoother, make_smoother
from deploy.smoothing.hysteresis import MOST
from lfd.errors import ModelError, UsageError
from lfd.spec import Labels, ModelSpec, Preprocess

SPEC = ModelSpec("m", Labels(tuple("abcd"), ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3))), Preprocess((2, 3)))
LOGITS = replace(SPEC, output="logits")
GAPS_S = st.lists(st.sampled_from([0.0, 0.01, 0.04, 0.05, 0.1, 0.7]), max_size=40)


def held(maps: list[np.ndarray], times: list[float], time_s: float) -> list[np.ndarray]:
    """The rule of hysteresis, pixel by pixel."""
    shown, given_at = maps[0].copy(), np.full(maps[0].shape, times[0])
    out = [shown.copy()]
    for classes, now in zip(maps[1:], times[1:], strict=True):
        for at in np.ndindex(classes.shape):
            if classes[at] == shown[at] or now - given_at[at] >= time_s - 1e-6:
                shown[at], given_at[at] = classes[at], now
        out.append(shown.copy())
    return out


@given(gaps=GAPS_S, time_s=st.sampled_from([0.02, 0.05, 0.12, 0.3, 2.0]), data=st.data())
def test_hysteresis_is_its_rule(gaps: list[float], time_s: float, data: st.DataObject) -> None:
    times = list(np.cumsum([3.0, *gaps]))
    maps = [data.draw(arrays(np.uint8, (2, 3), elements=st.integers(0, 3))) for _ in times]
    smoother = make_smoother(Smoothing(time_s), SPEC)
    shown = [smoother.smooth(classes, at_s) for classes, at_s in zip(maps, times, strict=True)]
    np.testing.assert_array_equal(shown, held(maps, times, time_s))
    for now, classes in zip(times, shown, strict=True):
        recent = [m for m, t in zip(maps, times, strict=True) if now - time_s - 1e-5 <= t <= now]
        assert np.any([classes == m for m in recent], axis=0).all(), "a class the model has not given for longer"


@pytest.mark.parametrize(("fps", "time_s"), [(30, 20.0), (30, 60.0), (254, 1.0), (256, 1.0), (1000, 1.5)])
def test_hysteresis_holds_for_longer_than_a_byte_counts(fps: int, time_s: float) -> None:
    """MOST results are 8.5 s of 30 frames a second."""
    smoother = make_smoother(Smoothing(time_s), SPEC)
    changed, count = fps // 2, round((time_s + 1) * fps)
    shown = [int(smoother.smooth(np.full((2, 3), at >= changed, np.uint8), at / fps)[0, 0]) for at in range(count)]
    first = shown.index(1)
    assert shown == [0] * first + [1] * (count - first)
    assert (first - changed + 1) / fps == pytest.approx(time_s, abs=0.01 * time_s + 1 / fps) and count > MOST


@given(gaps=GAPS_S, time_s=st.floats(0.01, 1.0), data=st.data())
def test_exponential_is_the_weighted_mean_of_probabilities(
    gaps: list[float], time_s: float, data: st.DataObject
) -> None:
    """Against the sum written out: a result weighs 2^(-age / time_s), less what of it was there before."""
    times = np.cumsum([3.0, *gaps])
    elements = st.floats(-8, 8, width=32)
    logits = np.stack([data.draw(arrays(np.float32, (4, 2, 3), elements=elements)) for _ in times])
    smoother = make_smoother(Smoothing(time_s), LOGITS)
    shown = [smoother.smooth(found, at_s) for found, at_s in zip(logits, times, strict=True)]
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    before = np.concatenate([[-np.inf], times[:-1]])  # of equal times the first counts
    weights = 2 ** ((times - times[-1]) / time_s) - 2 ** ((before - times[-1]) / time_s)
    mean = np.tensordot(weights, probabilities, 1)
    second, first = np.sort(mean, axis=0)[-2:]
    sure = first - second > 1e-4
    assert (shown[-1] == mean.argmax(0))[sure].all()


@pytest.mark.parametrize("kind", sorted(SMOOTHERS))
@pytest.mark.parametrize("fps", [10, 25, 100])
def test_time_means_the_same_to_both(kind: str, fps: int) -> None:
    """A sure pixel shows a change TIME after it last was as before, at any rate, and never what is gone by then."""
    time_s, changed_s = 0.4, 1.0
    spec = LOGITS if kind == "exponential" else SPEC
    steady, flickering = (make_smoother(Smoothing(time_s, kind), spec) for _ in range(2))

    def found(value: int) -> np.ndarray:
        classes = np.full((2, 3), value, np.uint8)
        return classes if spec is SPEC else 50 * (classes == np.arange(4)[:, None, None]).astype(np.float32)

    seen, wrong = [], 0
    for index in range(3 * fps):
        at_s = index / fps
        seen.append(int(steady.smooth(found(int(at_s >= changed_s)), at_s)[0, 0]))
        blink = changed_s <= at_s < changed_s + time_s - 1.5 / fps
        wrong += int(flickering.smooth(found(2 * blink), at_s)[0, 0])
    first = seen.index(1)
    assert seen == [0] * first + [1] * (len(seen) - first) and wrong == 0
    assert changed_s + time_s - 1 / fps - 1e-9 <= first / fps < changed_s + time_s + 1e-9


@pytest.mark.parametrize("kind", sorted(SMOOTHERS))
def test_frames_that_were_passed_over_and_outages(kind: str) -> None:
    """Results at half the rate show a change no later, and after a gap of several TIME nothing of before is left."""
    spec = LOGITS if kind == "exponential" else SPEC

    def found(value: int) -> np.ndarray:
        classes = np.full((2, 3), value, np.uint8)
        return classes if spec is SPEC else 9 * (classes == np.arange(4)[:, None, None]).astype(np.float32)

    smoother = make_smoother(Smoothing(0.2, kind), spec)
    for index in range(10):
        assert (smoother.smooth(found(0), index * 0.08) == 0).all()
    assert (smoother.smooth(found(1), 0.80) == 0).all()
    assert (smoother.smooth(found(1), 1.05) == 1).all()
    assert (smoother.smooth(found(2), 9.0) == 2).all(), "an outage"


def test_an_overflow_does_not_stay() -> None:
    smoother = make_smoother(Smoothing(0.1), LOGITS)
    logits = np.zeros((4, 2, 3), np.float32)
    logits[1] = 5
    smoother.smooth(logits, 0.0)
    broken = logits.copy()
    broken[2, 0, 0], broken[3, 1, 1] = np.inf, np.nan
    smoother.smooth(broken, 0.04)
    for index in range(2, 8):
        shown = smoother.smooth(logits, 0.04 * index)
    assert (shown == 1).all()


def test_a_stream_begins_anew() -> None:
    one, two = np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint8)
    smoother = StreamSmoother(Smoothing(10.0), SPEC)
    assert (smoother.smooth(one, 5.0, "a") == 0).all()
    assert (smoother.smooth(two, 5.1, "a") == 0).all()
    assert (smoother.smooth(two, 5.2, "b") == 1).all(), "another scene"
    assert (smoother.smooth(one, 5.3, "b") == 1).all()
    assert (smoother.smooth(one, 0.0, "b") == 0).all(), "time begins again"


def test_results_are_the_receivers_own() -> None:
    for kind, spec in (("hysteresis", SPEC), ("hysteresis", LOGITS), ("exponential", LOGITS)):
        smoother = make_smoother(Smoothing(1.0, kind), spec)
        found = np.zeros((4, 2, 3), np.float32) if spec is LOGITS else np.zeros((2, 3), np.uint8)
        for index in range(4):
            before = found.copy()
            shown = smoother.smooth(found, index / 10)
            assert (shown == 0).all()
            shown[:] = 3
            np.testing.assert_array_equal(found, before)


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(ModelError, match="gave class 9"):
        make_smoother(Smoothing(1.0), SPEC).smooth(np.full((2, 3), 9, np.uint8), 0.0)


@pytest.mark.parametrize(
    ("text", "time_s", "kind"),
    [
        ("0.2s", 0.2, None),
        ("200ms", 0.2, None),
        ("3", 3, None),
        ("exponential:1m", 60, "exponential"),
        (0.5, 0.5, None),
    ],
)
def test_what_is_typed(text: str | float, time_s: float, kind: str | None) -> None:
    smoothing = Smoothing.parse(text)
    assert smoothing.time_s == pytest.approx(time_s) and smoothing.kind == kind


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "smoothing ''.*expected a time above 0"),
        ("soon", "'soon'.*expected a time"),
        ("0s", "above 0"),
        ("61s", "^smoothing over 61 s; expected a time above 0, up to 60 s$"),
        (float("nan"), "smoothing over nan"),
        (-1.0, "above 0"),
        ("median:1s", "unknown smoothing 'median'.*Known: exponential, hysteresis"),
        ("hysteresis:", "expected a time"),
        (":1s", "unknown smoothing ''"),
    ],
)
def test_what_means_nothing(text: str | float, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Smoothing.parse(text)


def test_the_exponential_wants_logits() -> None:
    with pytest.raises(UsageError, match=r"m gives a class_map\. Fix: take hysteresis, or export"):
        StreamSmoother(Smoothing(1.0, "exponential"), SPEC)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("250ms", 0.25), ("10m", 600), ("1h30m", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1d", "1e3", "nan", "1 s", "٣s", "9" * 10])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time above 0"):
        parse_duration(text)


@given(scores=arrays(np.float32, (5, 4, 7), elements=st.integers(-3, 3).map(float)))
def test_the_largest_class_is_numpys(scores: np.ndarray) -> None:
    np.testing.assert_array_equal(largest_class(scores), scores.argmax(0))


def test_the_largest_of_many_classes() -> None:
    scores = np.random.default_rng(0).normal(size=(255, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(largest_class(scores), scores.argmax(0))


@given(data=st.data(), count=st.integers(1, 6))
def test_flicker_against_its_definition(data: st.DataObject, count: int) -> None:
    """Miao et al. 2021, VC_2, pixel by pixel; 9 is void."""
    draw = lambda most: data.draw(arrays(np.uint8, (3, 4), elements=st.sampled_from(most)))  # noqa: E731
    maps, truths = [draw([0, 1]) for _ in range(count)], [draw([0, 1, 9]) for _ in range(count)]
    flicker = Flicker()
    for classes, truth in zip(maps, truths, strict=True):
        given_map = classes.copy()
        flicker.update(given_map, truth, 9)
        given_map[:] = 7  # who gets a result may write into it
    steady = changed = 0
    for step in range(1, count):
        for at in np.ndindex(3, 4):
            if truths[step][at] == truths[step - 1][at] != 9:
                steady += 1
                changed += maps[step][at] != maps[step - 1][at]
    assert (flicker.steady, flicker.changed) == (steady, changed)
    assert flicker.share() == (changed / steady if steady else None)


def test_frames_of_another_size_are_not_compared() -> None:
    flicker = Flicker()
    for side in (4, 6, 6):
        flicker.update(np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8), 255)
    assert (flicker.changed, flicker.steady, flicker.share()) == (0, 36, 0.0)
