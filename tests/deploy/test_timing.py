"""Percentiles, spread and ratios, against numpy and LoadGen's published table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from deploy.bench.scenarios import SingleStream, WarmUp
from deploy.timing import (
    PERCENTILES,
    Percentiles,
    Ratio,
    Samples,
    Timing,
    drift,
    is_settled,
    nearest_rank,
    samples_needed,
    samples_to_take,
    variation,
)

durations = st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=800)


@pytest.mark.parametrize(("percentile", "published"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_sample_counts_are_loadgens_published_ones(percentile: float, published: int) -> None:
    assert samples_needed(percentile) == published


@pytest.mark.parametrize("percentile", [0.0, 1.0, -0.1, 99.0])
def test_a_percentile_that_no_number_of_samples_earns_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        samples_needed(percentile)


@given(durations, st.sampled_from(PERCENTILES))
def test_nearest_rank_is_numpys_inverted_cdf(samples: list[float], percentile: float) -> None:
    golden = np.percentile(np.array(samples), 100 * percentile, method="inverted_cdf")
    assert nearest_rank(sorted(samples), percentile) == golden


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_nearest_rank_is_the_exact_ceiling_for_every_count(percentile: float) -> None:
    share = round(percentile * 100)
    for n in range(1, 3000):
        assert nearest_rank(range(1, n + 1), percentile) == -(-share * n // 100)


@given(durations)
def test_a_percentile_is_there_exactly_when_it_was_earned(samples: list[float]) -> None:
    found = Percentiles.of(samples)
    assert found is not None
    values = (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms)
    assert [v is not None for v in values] == [len(samples) >= samples_needed(p) for p in PERCENTILES]
    earned = [v for v in values if v is not None]
    assert earned == sorted(earned)
    assert found.min_ms <= found.mean_ms * (1 + 1e-12)
    assert found.mean_ms <= found.max_ms * (1 + 1e-12)
    assert found.count == len(samples)


def test_no_samples_have_no_percentiles() -> None:
    assert Percentiles.of([]) is None
    with pytest.raises(ValueError, match="no samples"):
        Timing.of([])


def test_nothing_is_clipped() -> None:
    found = Percentiles.of([1.0] * 99 + [5000.0])
    assert found is not None
    assert found.max_ms == 5000.0
    assert found.mean_ms == pytest.approx(50.99)


@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=100))
def test_variation_is_numpys(samples: list[float]) -> None:
    assert variation(samples) == pytest.approx(np.std(samples, ddof=1) / np.mean(samples), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("samples", "share"),
    [([1.0] * 3, None), ([10.0] * 8, 0.0), ([10.0] * 4 + [11.0] * 4, 0.1), ([10.0] * 4 + [5.0] * 5, -0.5)],
)
def test_drift_is_second_half_against_first(samples: list[float], share: float | None) -> None:
    assert drift(samples) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("samples", "settled"),
    [
        ([10.0] * 9, False),  # not yet two windows
        ([10.0] * 10, True),
        ([20.0] * 5 + [10.0] * 5, False),
        ([20.0] * 5 + [10.0] * 10, True),
        ([10.0, 10.2] * 20, True),
        ([float(100 - i) for i in range(60)], False),  # still falling
    ],
)
def test_warm_up_comes_to_rest(samples: list[float], settled: bool) -> None:
    assert is_settled(samples) is settled


def test_unsteady_is_above_the_tolerance() -> None:
    assert not Timing.of([10.0, 10.1] * 10).unsteady
    assert Timing.of([10.0, 11.0] * 10).unsteady
    assert Timing.of([10.0] * 10 + [10.4] * 10).unsteady


def test_a_ratio_pairs_the_rounds() -> None:
    # The machine slows threefold; the ratio of medians over all samples would be off, that of pairs is not.
    assert Ratio.paired([[40.0], [120.0], [44.0]], [[10.0], [30.0], [10.0]]) == Ratio(4.0, 4.0, 4.4)
    # An interruption may leave one of them a round behind.
    assert Ratio.paired([[1.0]], [[1.0], [2.0]]) == Ratio(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("ratio", "decided"),
    [(Ratio(1.03, 1.02, 1.04), True), (Ratio(0.97, 0.96, 0.98), True), (Ratio(1.0, 0.99, 1.01), False)],
)
def test_two_models_are_told_apart_when_no_round_disagrees(ratio: Ratio, decided: bool) -> None:
    assert ratio.decided is decided


@pytest.mark.parametrize(("rounds", "most"), [(6, 20), (20, 20)])
@pytest.mark.parametrize(("apart", "least"), [(1.0, 0), (1.03, 195)])
def test_three_per_cent_are_told_apart_and_equals_are_not(rounds: int, most: int, apart: float, least: int) -> None:
    """The machine drifts by 5 % a round, noise is 0.5 %; the sign test errs in 3.1 or 4.1 % of the cases."""
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(200):
        state = 10 * rng.uniform(0.95, 1.05, rounds)
        fast, slow = ([list(s * f * rng.normal(1, 0.005, 30)) for s in state] for f in (1.0, apart))
        decided += Ratio.paired(slow, fast).decided
    assert least <= decided <= (200 if least else most)


def test_a_disturbed_round_of_many_does_not_decide() -> None:
    slow, fast = [[1.03]] * 15 + [[1.0]] * 5, [[1.0]] * 15 + [[1.3]] * 5
    assert Ratio.paired(slow, fast).decided
    assert not Ratio.paired([*slow[1:], [1.0]], [*fast[1:], [1.3]]).decided


@given(st.integers(1, 200))
def test_the_interval_of_a_ratio_is_the_sign_tests(count: int) -> None:
    """Against the binomial distribution of scipy: as narrow as 95 % allow, and no narrower."""
    ratio = Ratio.paired([[float(i)] for i in range(1, count + 1)], [[1.0]] * count)
    out = round(ratio.low) - 1
    assert ratio.high == count - out
    assert out == 0 or 2 * binom.cdf(out, count, 0.5) <= 0.05
    assert 2 * binom.cdf(out + 1, count, 0.5) > 0.05


def test_the_scenario_counts_every_round() -> None:
    rounds = [Samples((1.0, 2.0), (10.0, 20.0), (0.5, 0.5)), Samples((1.0,), (30.0,), (0.5,))]
    single = SingleStream.of(WarmUp((99.0,), True), rounds)
    assert single.model_alone.latency.count == single.end_to_end.latency.count == 3
    assert single.model_alone.images_per_s == pytest.approx(50.0)
    assert single.end_to_end.latency.mean_ms == pytest.approx((11.5 + 22.5 + 31.5) / 3)


@pytest.mark.parametrize(
    ("typical_ms", "seconds", "count"),
    [
        (1, 10, 10000),  # the time is filled
        (30, 10, 662),  # 20 s for p99 are affordable
        (100, 10, 130),  # 66 s are not, 13 s for p95 are
        (400, 10, 64),
        (1000, 10, 11),
        (60000, 10, 11),  # never less than the median needs
    ],
)
def test_samples_fill_the_time_or_earn_a_percentile(typical_ms: float, seconds: float, count: int) -> None:
    assert samples_to_take(typical_ms, seconds) == count
