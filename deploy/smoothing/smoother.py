"""What was asked for, and what does it to each stream."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from numpy.typing import NDArray

from deploy.duration import parse_duration
from deploy.smoothing.exponential import Exponential
from deploy.smoothing.hysteresis import Hysteresis
from lfd.errors import UsageError, unknown
from lfd.preprocess import Image
from lfd.spec import ModelSpec

MOST_S = 60.0


class Smoother(Protocol):
    """Steadies the results of one stream, one after another; has its state."""

    def smooth(self, found: NDArray[Any], at_s: float) -> Image:
        """Take in a result and return the class map to show.

        Args:
            found: As the session gives it for one picture: (H, W) uint8 classes or (K, H, W) float32 logits, always
                of one shape; not kept.
            at_s: When its frame was taken, seconds of the stream's own; never less than before.

        Returns:
            (H, W) uint8 classes, the receiver's own.

        Raises:
            ModelError: A class comes out that the spec does not name.
        """
        ...


SMOOTHERS: dict[str, Callable[[float, ModelSpec], Smoother]] = {"hysteresis": Hysteresis, "exponential": Exponential}
BY_OUTPUT = {"class_map": "hysteresis", "logits": "exponential"}


@dataclass(frozen=True)
class Smoothing:
    """How results are steadied.

    Attributes:
        time_s: See `deploy.smoothing`.
        kind: A name in SMOOTHERS; None takes the one for the model's output.

    Raises:
        UsageError: A time that means nothing, or no such kind.
    """

    time_s: float
    kind: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.time_s <= MOST_S:
            raise UsageError(f"smoothing over {self.time_s:g} s; expected a time above 0, up to {MOST_S:g} s")
        if self.kind is not None and self.kind not in SMOOTHERS:
            raise unknown("smoothing", self.kind, SMOOTHERS)

    @classmethod
    def parse(cls, text: str | float) -> Smoothing:
        """Read `TIME` or `KIND:TIME`, such as 0.2s, 200ms or hysteresis:0.2s; a number is seconds.

        Raises:
            UsageError: Anything else.
        """
        if not isinstance(text, str):
            return cls(float(text))
        kind, colon, time = text.rpartition(":")
        if colon and kind not in SMOOTHERS:
            raise unknown("smoothing", kind, SMOOTHERS)
        try:
            time_s = parse_duration(time)
        except UsageError as error:
            raise UsageError(f"smoothing {error}") from error
        return cls(time_s, kind or None)


def make_smoother(smoothing: Smoothing, spec: ModelSpec) -> Smoother:
    """Make what steadies one stream's results.

    Raises:
        UsageError: The kind needs another output than the model has.
    """
    return SMOOTHERS[smoothing.kind or BY_OUTPUT[spec.output]](smoothing.time_s, spec)


class StreamSmoother:
    """Steadies one stream's results, and begins anew when what came before has nothing to do with what comes.

    Args:
        smoothing: What was asked for.
        spec: The model's.

    Raises:
        UsageError: As in `make_smoother`.
    """

    def __init__(self, smoothing: Smoothing, spec: ModelSpec) -> None:
        self._make = partial(make_smoother, smoothing, spec)
        self._smoother = self._make()
        self._scene: Hashable = None
        self._at_s = 0.0

    def smooth(self, found: NDArray[Any], at_s: float, scene: Hashable) -> Image:
        """Take in a result; see `Smoother`.

        Args:
            found: The result.
            at_s: When its frame was taken; where that is before the last one, a new stream has begun.
            scene: When it is another one than before, so is the stream: the frame's size, its source's reconnects.
        """
        if scene != self._scene or at_s < self._at_s:
            self._smoother = self._make()
        self._scene, self._at_s = scene, at_s
        return self._smoother.smooth(found, at_s)
