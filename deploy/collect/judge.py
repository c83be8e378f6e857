"""How unsure a model is of a frame, and how far the frame is from what the stream usually shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from deploy.frames import Frame
from deploy.session import class_probabilities
from deploy.sinks.jsonl import class_counts
from lfd.preprocess import Image, content_box
from lfd.spec import ModelSpec

LONG_RUN_S = 3600.0
"""Time constant of what is usual; before so much has passed, the mean of all results counts."""
WARM_UP = 25
"""Results before which nothing stands out."""
LEAST_DEVIATION = 1e-4
"""Below it a figure does not vary, and what it is divided by stays finite."""
SAMPLED = 4
"""Of logits every so manieth pixel in both directions is looked at."""
NEIGHBOURS_S = 1.0
"""Results further apart are no neighbours: what differs between them may have moved."""


@dataclass(frozen=True)
class Sight:
    """A frame and what there is to say of it.

    Attributes:
        frame: As captured.
        at_s: When it was taken, seconds of the stream's own.
        unsure: See `deploy.collect`; None where it is not known.
        drift: Likewise.
        score: By how many standard deviations the figure that stands out more is above its mean.
        why: That figure: `unsure` or `drift`.
    """

    frame: Frame
    at_s: float
    unsure: float | None
    drift: float
    score: float = 0.0
    why: str = "drift"


class _Figures(NamedTuple):
    """What a measure says of a frame: how unsure the model is of it, where that is known, and (K,) class shares."""

    frame: Frame
    at_s: float
    unsure: float | None
    shares: NDArray[np.float64]


class _Measure(Protocol):
    """Takes the figures of one stream's results, one after another."""

    name: str

    def see(self, frame: Frame, found: NDArray[Any], at_s: float) -> _Figures | None:
        """Take in a result; return the figures that are known now: of this one, of the one before, or none."""
        ...

    def last(self) -> _Figures | None:
        """Return what is still held back."""
        ...


class _Margin:
    """Of logits, at once."""

    name = "margin"

    def see(self, frame: Frame, found: NDArray[Any], at_s: float) -> _Figures:
        odds = class_probabilities(np.ascontiguousarray(found[:, ::SAMPLED, ::SAMPLED]))
        first, second = odds[0].copy(), np.zeros_like(odds[0])
        for one in odds[1:]:
            np.maximum(second, np.minimum(first, one), out=second)
            np.maximum(first, one, out=first)
        return _Figures(frame, at_s, 1 - float((first - second).mean()), odds.mean((1, 2), dtype=np.float64))

    def last(self) -> None:
        return None


class _Flips:
    """Of class maps, one result later: what the neighbours of a result agree on is held against it."""

    name = "flips"

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._before: tuple[Image, float] | None = None
        self._held: tuple[Frame, float, Image] | None = None

    def see(self, frame: Frame, found: NDArray[Any], at_s: float) -> _Figures | None:
        after = np.array(found)
        held, before = self._held, self._before
        self._held, self._before = (frame, at_s, after), held and (held[2], held[1])
        if held is None:
            return None
        flips = None
        alike = before is not None and before[0].shape == held[2].shape == after.shape
        if before is not None and alike and at_s - before[1] <= NEIGHBOURS_S:
            agreed = cv2.compare(before[0], after, cv2.CMP_EQ)
            other = cv2.compare(held[2], after, cv2.CMP_NE)
            flips = cv2.countNonZero(cv2.bitwise_and(agreed, other)) / after.size
        return _Figures(held[0], held[1], flips, self._shares(held[2]))

    def last(self) -> _Figures | None:
        held, self._held, self._before = self._held, None, None
        return None if held is None else _Figures(held[0], held[1], None, self._shares(held[2]))

    def _shares(self, classes: Image) -> NDArray[np.float64]:
        return class_counts(classes)[: self._classes] / classes.size


class Usual:
    """The long-run mean and deviation of a figure, or of several, by West's update with weights that fade.

    D. H. D. West, "Updating mean and variance estimates: an improved method" (CACM 1979). A result weighs 1 / n until
    LONG_RUN_S have passed, and then as much as time has gone by.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self._variance: Any = 0.0
        self._at_s = 0.0

    def deviations(self, value: float) -> float:
        """Return by how many standard deviations a value is above the mean, to 0.001; 0 before WARM_UP values."""
        if self.count < WARM_UP:
            return 0.0
        return round(float(value - self.mean) / max(math.sqrt(self._variance), LEAST_DEVIATION), 3)

    def add(self, value: Any, at_s: float) -> None:
        """Take in a value of some time."""
        self.count += 1
        # One value never is the whole mean again, however long nothing came before it.
        faded = -math.expm1(-max(0.0, at_s - self._at_s) / LONG_RUN_S)
        weight = max(1 / self.count, min(1 / WARM_UP, faded))
        self._at_s = at_s
        delta = value - self.mean
        self.mean = self.mean + weight * delta
        self._variance = (1 - weight) * (self._variance + weight * delta * delta)


def jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Return the Jensen-Shannon distance of two distributions, (K,) each, in [0, 1].

    The root of the divergence to base 2 (Lin, IEEE Trans. Inf. Theory 1991), which is a metric (Endres and Schindelin,
    ibid. 2003).
    """
    middle = (p + q) / 2
    divergence = 0.0
    for one in (p, q):
        there = one > 0
        divergence += float((one[there] * np.log2(one[there] / middle[there])).sum()) / 2
    return math.sqrt(min(1.0, max(0.0, divergence)))


class Judge:
    """Says of one stream's frames how much each stands out.

    Args:
        spec: The model's.

    Attributes:
        measure: How `unsure` is taken: `margin` or `flips`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._measure: _Measure = _Margin() if spec.output == "logits" else _Flips(len(spec.labels))
        self.measure = self._measure.name
        self._unsure, self._drift, self._shares = Usual(), Usual(), Usual()

    def see(self, frame: Frame, found: NDArray[Any], at_s: float) -> Sight | None:
        """Take in a result, as the session gives it for one picture; return the frame that is judged now, if any."""
        hw = frame.image.shape[0], frame.image.shape[1]
        top, left, height, width = content_box(hw, self._spec.preprocess)
        return self._judged(self._measure.see(frame, found[..., top : top + height, left : left + width], at_s))

    def last(self) -> Sight | None:
        """Return the last frame where its judgement waited for another."""
        return self._judged(self._measure.last())

    def _judged(self, figures: _Figures | None) -> Sight | None:
        if figures is None:
            return None
        frame, at_s, unsure, shares = figures
        drift = jensen_shannon(shares, self._shares.mean) if self._shares.count else 0.0
        sight = Sight(frame, at_s, unsure, drift, self._drift.deviations(drift))
        self._shares.add(shares, at_s)
        self._drift.add(drift, at_s)
        if unsure is not None:
            if (score := self._unsure.deviations(unsure)) >= sight.score:
                sight = replace(sight, score=score, why="unsure")
            self._unsure.add(unsure, at_s)
        return sight
