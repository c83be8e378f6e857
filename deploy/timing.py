"""Durations and what may be said of them: percentiles that were earned, drift, spread. Nothing is clipped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99
PERCENTILES = (0.5, 0.9, 0.95, 0.99)
RATIO_CONFIDENCE = 0.95
"""Of the interval in which the ratio of two models lies, as of `lfd-bench compare`."""

TOLERANCE = 0.025
"""Medians that differ by less count as equal; more spread or drift than this is worth a warning."""


AFFORDABLE = 3
"""A percentile is worth this many times the seconds asked for."""


def samples_needed(percentile: float) -> int:
    """Return how many samples a percentile needs before it may be printed.

    MLPerf LoadGen's early-stopping rule at 99 % confidence with one sample above the percentile:
    the smallest n for which P(Binomial(n, 1 - p) <= 1) <= 0.01.

    Args:
        percentile: p in (0, 1), such as 0.99.

    Raises:
        ValueError: p is outside (0, 1), which no number of samples earns.
    """
    if not 0 < percentile < 1:
        raise ValueError(f"percentile {percentile}; expected a share between 0 and 1")
    n = 2
    while percentile**n + n * (1 - percentile) * percentile ** (n - 1) > 1 - CONFIDENCE:
        n += 1
    return n


def samples_to_take(typical_ms: float, seconds: float) -> int:
    """Return how many samples fill the time, or earn the highest percentile that is affordable."""
    needed = [samples_needed(p) for p in PERCENTILES]
    affordable = [n for n in needed if n * typical_ms <= AFFORDABLE * seconds * 1e3]
    return max(math.ceil(seconds * 1e3 / typical_ms), needed[0], *affordable)


def nearest_rank(ordered: Sequence[float], percentile: float) -> float:
    """Return the ceil(p n)-th smallest of `ordered`, which is sorted and not empty."""
    # The subtraction undoes rounding such as 0.95 * 20 = 19.000000000000004 -> rank 20.
    return ordered[max(1, math.ceil(percentile * len(ordered) - 1e-9)) - 1]


@dataclass(frozen=True)
class Percentiles:
    """A summary of durations in milliseconds; a percentile with too few samples is None."""

    count: int
    mean_ms: float
    min_ms: float
    max_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Percentiles | None:
        """Summarise samples; None when there are none."""
        if not samples_ms:
            return None
        ordered = sorted(samples_ms)
        n = len(ordered)
        earned = [nearest_rank(ordered, p) if n >= samples_needed(p) else None for p in PERCENTILES]
        return cls(n, math.fsum(ordered) / n, ordered[0], ordered[-1], *earned)


def variation(samples: Sequence[float]) -> float | None:
    """Return the coefficient of variation, sample deviation over mean; None below two samples."""
    return statistics.stdev(samples) / statistics.fmean(samples) if len(samples) > 1 else None


def drift(samples: Sequence[float]) -> float | None:
    """Return by what share the second half's median lies above the first's; None below four samples."""
    if len(samples) < 4:
        return None
    half = len(samples) // 2
    return statistics.median(samples[half:]) / statistics.median(samples[:half]) - 1


def is_settled(samples: Sequence[float]) -> bool:
    """Tell whether the rolling median has come to rest: the last window against the one before.

    The window is a quarter of the samples and five at least, so that it grows with the warm-up and
    a noisy machine, too, comes to rest in the end.
    """
    window = max(5, len(samples) // 4)
    if len(samples) < 2 * window:
        return False
    last, before = statistics.median(samples[-window:]), statistics.median(samples[-2 * window : -window])
    return abs(last - before) <= TOLERANCE * before


@dataclass(frozen=True)
class Samples:
    """Raw durations of one round, in milliseconds; the same position is the same picture.

    Attributes:
        fit_ms: Resizing the frame to the model's input.
        model_ms: The model alone, frame in, class map out.
        restore_ms: Bringing the class map back to the frame's size.
    """

    fit_ms: tuple[float, ...]
    model_ms: tuple[float, ...]
    restore_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.fit_ms) == len(self.model_ms) == len(self.restore_ms):
            raise ValueError("stages of different length; expected one duration a picture in each")
        if any(ms < 0 for stage in (self.fit_ms, self.model_ms, self.restore_ms) for ms in stage):
            raise ValueError("a duration below 0 ms; expected what a clock measured")

    @property
    def end_to_end_ms(self) -> tuple[float, ...]:
        """The three together, picture by picture."""
        return tuple(map(sum, zip(self.fit_ms, self.model_ms, self.restore_ms, strict=True)))


@dataclass(frozen=True)
class Timing:
    """What a series of durations says.

    Attributes:
        latency: Percentiles.
        images_per_s: One after another: pictures over the sum of the samples.
        variation: Coefficient of variation, as a share.
        drift: Second half's median against the first's, as a share.
    """

    latency: Percentiles
    images_per_s: float
    variation: float | None
    drift: float | None

    @classmethod
    def of(cls, samples_ms: Sequence[float], pictures: int = 1) -> Timing:
        """Summarise samples in the order they were taken, at least one; `pictures` is how many each took."""
        latency = Percentiles.of(samples_ms)
        if latency is None:
            raise ValueError("no samples to summarise")
        return cls(latency, pictures * 1e3 / latency.mean_ms, variation(samples_ms), drift(samples_ms))

    @property
    def unsteady(self) -> bool:
        """Whether spread or drift is above TOLERANCE, so that small differences mean nothing."""
        return max(abs(self.variation or 0.0), abs(self.drift or 0.0)) > TOLERANCE


def _left_out(rounds: int) -> int:
    """Return how many values may go on either side of a median's interval: P(Binomial(n, 1/2) < k) <= 0.025."""
    left_out, tail = -1, 0
    while (tail := tail + math.comb(rounds, left_out + 1)) <= (1 - RATIO_CONFIDENCE) / 2 * 2**rounds:
        left_out += 1
    return max(0, left_out)


@dataclass(frozen=True)
class Ratio:
    """How many times something is faster, from rounds measured in turns.

    The interval is the sign test's for their median, whatever their distribution (Conover, Practical Nonparametric
    Statistics, 3.2): the narrowest from the k-th smallest to the k-th largest ratio that holds it with 95 % confidence.
    Of 20 rounds five on either side are left out, so that disturbed rounds do not decide; of fewer than nine none is.

    Attributes:
        median: The median of the rounds' ratios.
        low: Lower end of the interval.
        high: Upper end.
    """

    median: float
    low: float
    high: float

    @classmethod
    def paired(cls, slow_rounds: Sequence[Sequence[float]], fast_rounds: Sequence[Sequence[float]]) -> Ratio:
        """Compare round by round, by the rounds' medians; both saw the same state of the machine.

        A round that an interruption left to one of them only is left out.
        """
        pairs = zip(slow_rounds, fast_rounds, strict=False)
        ratios = sorted(statistics.median(slow) / statistics.median(fast) for slow, fast in pairs)
        out = _left_out(len(ratios))
        return cls(statistics.median(ratios), ratios[out], ratios[-1 - out])

    @property
    def decided(self) -> bool:
        """Whether the two are told apart: the interval leaves 1 out."""
        return not self.low <= 1 <= self.high
