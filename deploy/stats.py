"""What a run has done so far, for whoever shows or writes it while the run goes on, and for its summary."""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from deploy.frames import State, StreamStatus
from deploy.timing import Percentiles

KEPT_SAMPLES = 1 << 15
"""Durations kept a stage, the latest: 18 minutes of 30 frames a second, in 256 kB that are there from the start."""
RECENT_S = 3.0
"""Seconds over which the present rate is taken."""
STAGES = ("read", "fit", "infer", "restore", "write")
OPTIONAL_STAGES = ("smooth", "score")
"""What is done behind the inference where it is asked for: steadying results, and judging frames to collect."""


@dataclass(frozen=True)
class StatsSnapshot:
    """One stream at one moment. `captured == shown + dropped_late + under way`.

    Attributes:
        captured: Frames the source gave, or passed over for a newer one.
        shown: Frames that went through all sinks.
        dropped_late: Frames of a live source that gave way to a newer one, there or here.
        reconnects: How often the source was lost and came back.
        state: How the stream is.
        fps: Frames shown a second over the last seconds; 0 before there are two.
        latency_ms: Of the frame shown last, from its capture until all sinks had it; None before the first.
        infer_ms: Of the last inference; None before the first.
    """

    captured: int
    shown: int
    dropped_late: int
    reconnects: int
    state: State
    fps: float
    latency_ms: float | None
    infer_ms: float | None


class Durations:
    """The latest KEPT_SAMPLES durations, in milliseconds, in memory that does not grow."""

    def __init__(self) -> None:
        self._kept = array("d", bytes(8 * KEPT_SAMPLES))
        self.count = 0

    def add(self, ms: float) -> None:
        """Add one, in place of the oldest when there are too many."""
        self._kept[self.count % KEPT_SAMPLES] = ms
        self.count += 1

    def since(self, count: int) -> list[float]:
        """Return those after the first `count`, as far as they are kept, in their order."""
        now = self.count
        return [self._kept[i % KEPT_SAMPLES] for i in range(max(count, now - KEPT_SAMPLES), now)]

    @property
    def last(self) -> float | None:
        now = self.count
        return self._kept[(now - 1) % KEPT_SAMPLES] if now else None

    def percentiles(self) -> Percentiles | None:
        """Summarise what is kept; None when there is nothing."""
        return Percentiles.of(self.since(0))


class StreamStats:
    """Counts what happens to one stream. Its stages call it from their threads, anybody asks from another.

    Frames that `--stride` or `--fps` pass over are `skipped`, and not `captured`: the source's frames are
    captured + skipped, and captured = shown + dropped_late + those under way, which at the end become dropped too.

    Args:
        clock: Nanoseconds, monotonic, the clock of `Frame.captured_ns`.

    Attributes:
        stages: Stage of STAGES, and of OPTIONAL_STAGES those there are -> its durations a frame, in their order.
        latency: From capture until all sinks had it.
        losses: Cause -> how often the stream was lost by it.
        status: How the stream is.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self.captured = self.shown = self.late = self.skipped = self.reconnects = 0
        self.stages = {name: Durations() for name in STAGES}
        self.latency = Durations()
        self.losses: Counter[str] = Counter()
        self.status = StreamStatus(State.LIVE, clock())
        self._shown_ns: deque[int] = deque(maxlen=128)

    def add_stage(self, name: str) -> None:
        """Make room for a stage of OPTIONAL_STAGES, behind the inference; before the run begins."""
        behind = STAGES.index("infer") + 1
        order = (*STAGES[:behind], *OPTIONAL_STAGES, *STAGES[behind:])
        self.stages = {**self.stages, name: Durations()}
        self.stages = {stage: self.stages[stage] for stage in order if stage in self.stages}

    def capture(self) -> None:
        """Count a frame of the source that is to be inferred."""
        with self._lock:
            self.captured += 1

    def skip(self) -> None:
        """Count a frame of the source that is not to be."""
        with self._lock:
            self.skipped += 1

    def drop(self, frames: int) -> None:
        """Count frames that gave way to newer ones."""
        with self._lock:
            self.late += frames

    def show(self, captured_ns: int) -> float:
        """Count a frame that all sinks have; return its latency, ms."""
        with self._lock:
            now = self._clock()
            latency_ms = (now - captured_ns) / 1e6
            self.shown += 1
            self.latency.add(latency_ms)
            self._shown_ns.append(now)
            return latency_ms

    def change(self, status: StreamStatus) -> None:
        """Take in how the stream is from now on."""
        with self._lock:
            before, self.status = self.status.state, status
            if before is not status.state is State.LOST:
                self.losses[status.cause.value if status.cause else "unknown"] += 1
            if before is State.LOST and status.state is State.LIVE:
                self.reconnects += 1

    def snapshot(self) -> StatsSnapshot:
        """Return the present counts, which belong together."""
        with self._lock:
            begin = self._clock() - int(RECENT_S * 1e9)
            recent = [ns for ns in self._shown_ns if ns >= begin]
            span_s = (recent[-1] - recent[0]) / 1e9 if recent else 0.0
            return StatsSnapshot(
                captured=self.captured,
                shown=self.shown,
                dropped_late=self.late,
                reconnects=self.reconnects,
                state=self.status.state,
                fps=(len(recent) - 1) / span_s if span_s > 0 else 0.0,
                latency_ms=self.latency.last,
                infer_ms=self.stages["infer"].last,
            )
