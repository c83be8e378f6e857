"""One stream's way through a run; `deploy.exchange` has the rules by which several share one model."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from deploy.frames import StreamStatus

I = TypeVar("I")  # noqa: E741 - what goes into the inference
O = TypeVar("O")  # noqa: E741 - what comes out of it

QUEUE = 2
"""Frames that wait for the inference, of a file. Of a live source one does: the newest."""
RESULTS = 3
"""Frames of a file that are being inferred or wait for the caller."""
REMEMBERED = 8
"""Durations from which the next inference and the next write are foreseen."""
AHEAD = 0.2
"""A live source's next frame is waited for when it is due within this share of the time between two, early or late: a
frame that is nearly as old as that would be shown by an inference that ends no sooner. 30 frames a second, model of
100 ms, age of the picture shown at p99 with 0.1, 0.2 and 0.3: 134, 113 and 114 ms, the same number of them shown."""


class Lane(Generic[I, O]):
    """One stream's frames, and how the stream is, in their order. Used under the exchange's lock.

    Args:
        live: Whether its source is live.
        lock: The exchange's.

    Attributes:
        waiting: What has not been inferred.
        done: What the caller has not taken.
        in_hand: How many of its frames are being inferred.
        ended: Whether nothing more will be put.
        closed: Whether nothing more will be taken.
        room: Notified when the reader may put again.
        writes: How long the caller was away with each of the last results, s.
        gaps: Times between the last frames put, s.
        given_at: When its last result was given, s.
    """

    def __init__(self, live: bool, lock: threading.Lock) -> None:
        self.live = live
        self.waiting: deque[I | StreamStatus] = deque()
        self.done: deque[O | StreamStatus] = deque()
        self.in_hand = 0
        self.ended = self.closed = False
        self.room = threading.Condition(lock)
        self.writes: deque[float] = deque(maxlen=REMEMBERED)
        self.gaps: deque[float] = deque(maxlen=REMEMBERED)
        self.given_at = 0.0
        self._put_at: float | None = None

    @property
    def full(self) -> bool:
        """Whether a file's reader has to wait."""
        return len(self.waiting) >= QUEUE

    @property
    def drained(self) -> bool:
        """Whether nothing will come to the inference any more."""
        return self.closed or (self.ended and not self.waiting)

    @property
    def over(self) -> bool:
        """Whether nothing will come to the caller any more."""
        return self.closed or (self.drained and not self.in_hand and not self.done)

    @property
    def write_s(self) -> float:
        """How long the caller will be away with one of its results: the longest of the last."""
        return max(self.writes, default=0.0)

    def note_put(self, now: float) -> None:
        """Take in that a frame has come."""
        if self._put_at is not None:
            self.gaps.append(now - self._put_at)
        self._put_at = now

    def next_due_s(self, now: float) -> float:
        """Return for how long the next frame is worth waiting for; 0 when none is about to come."""
        if self._put_at is None or not self.gaps:
            return 0.0
        gap = sorted(self.gaps)[len(self.gaps) // 2]
        left = self._put_at + gap - now
        return left + AHEAD * gap if abs(left) < AHEAD * gap else 0.0
