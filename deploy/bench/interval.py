"""By what share a median rose between two reports, and how sure that is.

A hierarchical bootstrap of the raw samples: rounds are drawn with replacement, and then samples within each (Kalibera
and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013). Samples of a round are alike, since clocks, caches
and neighbours change slowly; a bootstrap or rank test that takes them for independent finds a difference between any
two runs of the same model. What changes between the two runs as a whole is in no interval: that is what --max-regress
leaves room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lfd.errors import DataError

RESAMPLES = 1000
CONFIDENCE = 0.95

Rounds = Sequence[Sequence[float]]


class Interval(NamedTuple):
    """By what share something rose, where 0 is not at all.

    Attributes:
        rise: As measured.
        low: Lower end of the interval at CONFIDENCE.
        high: Upper end.
        above: Share of the resamples in which the rise was above the limit.
    """

    rise: float
    low: float
    high: float
    above: float


def _median(samples: NDArray[np.float64]) -> float:
    """Return the nearest-rank median, as every report has it."""
    rank = (len(samples) + 1) // 2 - 1
    return float(np.partition(samples, rank)[rank])


def _medians(rounds: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the median of each resample."""
    found = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = (rounds[i] for i in rng.integers(0, len(rounds), len(rounds)))
        found[index] = _median(np.concatenate([a[rng.integers(0, len(a), len(a))] for a in drawn]))
    return found


def rise_of_median(before: Rounds, after: Rounds, limit: float) -> tuple[float, float, Interval]:
    """Return both medians, and by what share the second is above the first, with its interval.

    Args:
        before: Durations by round; the rounds need not be of equal length.
        after: Likewise.
        limit: For `Interval.above`.

    Raises:
        DataError: A duration is not above zero.
    """
    rng = np.random.default_rng(0)  # the same reports always give the same answer
    old, new = ([np.asarray(samples, np.float64) for samples in rounds if samples] for rounds in (before, after))
    if min(samples.min() for samples in (*old, *new)) <= 0:
        raise DataError("a duration of 0 ms or less; expected reports of lfd-bench")
    rises = _medians(new, rng) / _medians(old, rng) - 1
    low, high = np.quantile(rises, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    was, now = _median(np.concatenate(old)), _median(np.concatenate(new))
    return was, now, Interval(now / was - 1, float(low), float(high), float(np.mean(rises > limit)))
