"""The loops that hold a clock to a model: one picture after another, in batches, or as frames arrive."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from deploy.session import InferenceSession, as_class_map, class_map
from deploy.timing import Samples, is_settled, samples_to_take
from lfd.preprocess import Image, fit_frame, restore_map

MIN_WARM_UPS = 3
SPIN_NS = 1_000_000
"""A sleep may end this late; the rest of a wait is spent looking at the clock."""


class Clock(Protocol):
    """A monotonic clock. Tests bring one of their own, so that what is measured is known exactly."""

    def now_ns(self) -> int: ...

    def wait_until(self, at_ns: int) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    now_ns = staticmethod(time.perf_counter_ns)

    def wait_until(self, at_ns: int) -> None:
        """Return at a time, or at once where it is past."""
        ahead_ns = at_ns - SPIN_NS - self.now_ns()
        if ahead_ns > 0:
            time.sleep(ahead_ns / 1e9)
        while self.now_ns() < at_ns:
            pass


SYSTEM = SystemClock()


class Arrivals(NamedTuple):
    """What a stream gave: stages of each frame served, how long each waited for its turn, and who waits still."""

    samples: Samples
    wait_ms: tuple[float, ...]
    unserved: int


@contextmanager
def _undisturbed() -> Iterator[None]:
    # The loops make no cycles, and a collection of everything that numpy and a runtime have takes milliseconds.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _samples(stamps: Sequence[tuple[int, int, int, int]]) -> Samples:
    fit, model, restore = (tuple((s[i + 1] - s[i]) / 1e6 for s in stamps) for i in range(3))
    return Samples(fit, model, restore)


def _serve(session: InferenceSession, frame: Image, clock: Clock) -> tuple[int, int, int, int]:
    """Run one picture; return when it began, was fitted, had its class map, and had it back at its own size."""
    preprocess = session.spec.preprocess
    begin = clock.now_ns()
    fitted = fit_frame(frame, preprocess)
    ready = clock.now_ns()
    classes = class_map(session, fitted)
    done = clock.now_ns()
    restore_map(classes, preprocess, (frame.shape[0], frame.shape[1]))
    return begin, ready, done, clock.now_ns()


def measure(
    session: InferenceSession, frames: Sequence[Image], count: int, start: int = 0, clock: Clock = SYSTEM
) -> Samples:
    """Run one picture after another and time each stage.

    All stages are timed in one pass, so that "model alone" and "end to end" are the same runs. The
    frames are decoded before; `run` returns when the device has finished, and then the clock stops.

    Args:
        session: The model.
        frames: (H, W, 3) BGR uint8, taken in turns.
        count: How many inferences.
        start: Position in `frames` to begin at.
        clock: Whose time it is.
    """
    with _undisturbed():
        return _samples([_serve(session, frames[i % len(frames)], clock) for i in range(start, start + count)])


def measure_batches(
    session: InferenceSession, frames: Sequence[Image], batch: int, count: int, start: int = 0, clock: Clock = SYSTEM
) -> Samples:
    """Run `count` batches one after another; arguments and stages as in `measure`, each sample a whole batch.

    Raises:
        ModelError: The model does not take so many frames a run.
    """
    preprocess, stamps = session.spec.preprocess, []
    with _undisturbed():
        for first in range(start, start + count * batch, batch):
            taken = [frames[i % len(frames)] for i in range(first, first + batch)]
            begin = clock.now_ns()
            fitted = np.stack([fit_frame(frame, preprocess) for frame in taken])
            ready = clock.now_ns()
            maps = [as_class_map(found, session.spec) for found in session.run(fitted)]
            done = clock.now_ns()
            for classes, frame in zip(maps, taken, strict=True):
                restore_map(classes, preprocess, (frame.shape[0], frame.shape[1]))
            stamps.append((begin, ready, done, clock.now_ns()))
    return _samples(stamps)


def measure_stream(
    session: InferenceSession, frames: Sequence[Image], fps: float, seconds: float, clock: Clock = SYSTEM
) -> Arrivals:
    """Serve frames that arrive at a constant rate, in order, none dropped.

    Args:
        session: The model.
        frames: (H, W, 3) BGR uint8, taken in turns.
        fps: Arrivals a second.
        seconds: How long frames arrive; longer where that earns a higher percentile. A model that cannot keep up is
            stopped this long after the last arrival.
        clock: Whose time it is.
    """
    period_ns = 1e9 / fps
    count = samples_to_take(period_ns / 1e6, seconds)
    stamps: list[tuple[int, int, int, int]] = []
    waits: list[float] = []
    with _undisturbed():
        origin = clock.now_ns() + round(period_ns)
        give_up = origin + count * period_ns + 1e9 * seconds
        for index in range(count):
            if stamps and clock.now_ns() > give_up:
                break
            due = origin + round(index * period_ns)
            clock.wait_until(due)
            stamps.append(_serve(session, frames[index % len(frames)], clock))
            waits.append((stamps[-1][0] - due) / 1e6)
    return Arrivals(_samples(stamps), tuple(waits), count - len(stamps))


def warm_up(
    session: InferenceSession, frames: Sequence[Image], seconds: float, limit_s: float, clock: Clock = SYSTEM
) -> tuple[list[float], bool]:
    """Run until the time is up and the rolling median has come to rest, or until the limit.

    Returns:
        The end-to-end durations in milliseconds, and whether the median came to rest.
    """
    durations: list[float] = []
    begin = clock.now_ns()
    while True:
        durations += measure(session, frames, 1, len(durations), clock).end_to_end_ms
        spent = (clock.now_ns() - begin) / 1e9
        if len(durations) < MIN_WARM_UPS or spent < seconds:
            continue
        settled = is_settled(durations)
        if settled or spent >= limit_s:
            return durations, settled
