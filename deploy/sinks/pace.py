"""How a film of a live source keeps the pace of the clock."""

from __future__ import annotations

import math

GAP_S = 10.0
"""At most so much of a film is filled between two frames: an outage of hours would be hours of one picture."""
LEAD_S = 0.25
"""Frames that come in a burst may run ahead of the clock by so much; beyond, the source is faster than it said."""


class Pace:
    """Counts a film's pictures against the clock: picture n is due at `start + n / fps`.

    Args:
        fps: Of the film.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._start_ns: float | None = None
        self._written = self._filled = 0
        self.shortened = 0
        """How many gaps were longer than GAP_S, and are shorter in the film."""

    def fill(self, now_ns: int) -> int:
        """Return how many copies of the last picture belong into the film before one of now; count them as written."""
        if self._start_ns is None:
            return 0
        room = math.ceil(GAP_S * self._fps) - self._filled
        copies = max(0, min(self._due(now_ns) - self._written, room))
        self._written += copies
        self._filled += copies
        return copies

    def take(self, at_ns: int) -> bool:
        """Return whether a frame of this moment belongs into the film; if so, count it as written.

        It does not where the film is LEAD_S ahead: the source gives more frames than it said.
        """
        if self._start_ns is None:
            self._start_ns = at_ns
        late = self._due(at_ns) - self._written
        if late < -LEAD_S * self._fps:
            return False
        if late > 0:  # after a gap that was not filled whole the film goes on from here
            self.shortened += 1
            self._start_ns += late * 1e9 / self._fps
        self._written += 1
        self._filled = 0
        return True

    def _due(self, at_ns: int) -> int:
        assert self._start_ns is not None  # noqa: S101 - the callers look
        return math.floor((at_ns - self._start_ns) * self._fps / 1e9 + 0.5)
