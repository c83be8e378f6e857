"""Percentiles that were earned, by nearest rank, with nothing clipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99


def samples_needed(percentile: float) -> int:
    """Return how many samples a percentile needs before it may be printed.

    MLPerf LoadGen's early-stopping rule at 99 % confidence with one sample above the percentile:
    the smallest n for which P(Binomial(n, 1 - p) <= 1) <= 0.01.

    Args:
        percentile: p in (0, 1), such as 0.99.
    """
    n = 2
    while percentile**n + n * (1 - percentile) * percentile ** (n - 1) > 1 - CONFIDENCE:
        n += 1
    return n


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
        earned = [nearest_rank(ordered, p) if n >= samples_needed(p) else None for p in (0.5, 0.9, 0.95, 0.99)]
        return cls(n, math.fsum(ordered) / n, ordered[0], ordered[-1], *earned)
