"""What the page, other programs and Prometheus are told about a run."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.frames import Cause, State, StreamStatus
from deploy.run_summary import resident_mb
from deploy.stats import StatsSnapshot
from deploy.timing import Percentiles

SCHEMA = 1
HISTORY_S = 300
"""Seconds of which there is a record."""
RECENT = 1000
"""Latencies over which percentiles are taken."""
BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
OVERDUE_S = 10.0
"""A stream that is said to live and gives nothing for so long is not healthy, unless it is as slow as that."""


@dataclass(frozen=True)
class Second:
    """One second of a run.

    Attributes:
        at: Unix time at its begin.
        frames: Taken.
        mean_ms: Latency, capture to sink; None without a frame.
        max_ms: Likewise.
        dropped: Frames that gave way to newer ones.
        reconnects: How often the source came back.
        lost: Whether the stream was, at its end.
    """

    at: int
    frames: int
    mean_ms: float | None
    max_ms: float | None
    dropped: int
    reconnects: int
    lost: bool


class Numbers:
    """Counts what a sink is given, in a fixed amount of memory; asked from another thread.

    Args:
        about: What is the same for the whole run: "model", "backend", "source" and more, for people. Its "resolution"
            is the source's at first, and then that of the frames.
        snapshot: Returns the run's own counters.
        clock: Unix time, seconds.
        monotonic_ns: The clock of `Frame.captured_ns`.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        snapshot: Callable[[], StatsSnapshot],
        clock: Callable[[], float] = time.time,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._about, self._snapshot, self._clock, self._monotonic_ns = dict(about), snapshot, clock, monotonic_ns
        self._lock = threading.Lock()
        self._begin = clock()
        self._frame_at: float | None = None
        self._frame_ns, self._gap_s = 0, 0.0
        self._status = StreamStatus(State.LIVE, monotonic_ns())
        self._losses: Counter[str] = Counter()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._buckets = array("q", bytes(8 * (len(BUCKETS_S) + 1)))
        self._latency_s = 0.0
        self._seconds: deque[Second] = deque(maxlen=HISTORY_S)
        self._second, self._in_second = int(self._begin), array("d")
        self._counted = 0, 0

    def frame(self, captured_ns: int, resolution_wh: tuple[int, int] | None = None) -> float:
        """Count a frame, of a resolution that may have changed; return the Unix time of its capture."""
        with self._lock:
            if resolution_wh is not None:
                self._about["resolution"] = resolution_wh
            now, now_ns = self._clock(), self._monotonic_ns()
            age_ns = now_ns - captured_ns
            self._turn(now)
            self._gap_s = (now_ns - self._frame_ns) / 1e9 if self._frame_at is not None else 0.0
            self._frame_at, self._frame_ns = now, now_ns
            self._in_second.append(age_ns / 1e6)
            self._recent.append(age_ns / 1e6)
            self._buckets[bisect_left(BUCKETS_S, age_ns / 1e9)] += 1
            self._latency_s += age_ns / 1e9
            return now - age_ns / 1e9

    def status(self, status: StreamStatus) -> None:
        """Take in how the stream is; called often."""
        with self._lock:
            if status.state is State.LOST is not self._status.state:
                self._losses[status.cause.value if status.cause else "unknown"] += 1
            self._status = status
            self._turn(self._clock())

    def _turn(self, now: float) -> None:
        """Begin a new second when the last is over."""
        if int(now) == self._second:
            return
        run, times = self._snapshot(), self._in_second
        dropped, reconnects = run.dropped_late - self._counted[0], run.reconnects - self._counted[1]
        self._counted = run.dropped_late, run.reconnects
        mean, most = (round(sum(times) / len(times), 2), round(max(times), 2)) if times else (None, None)
        lost = self._status.state is State.LOST
        self._seconds.append(Second(self._second, len(times), mean, most, dropped, reconnects, lost))
        self._second, self._in_second = int(now), array("d")

    def unhealthy(self) -> str:
        """Return why no pictures come; "" while they do."""
        with self._lock:
            at, gap_s, status = self._frame_at, self._gap_s, self._status
            age_s = (self._monotonic_ns() - self._frame_ns) / 1e9  # clocks of the day jump
        if status.state is not State.LIVE:
            return f"{status.state.value}: {status.cause.value}" if status.cause else status.state.value
        if at is None:
            return "no picture yet"
        return f"no picture for {age_s:.0f} s" if age_s > max(OVERDUE_S, 3 * gap_s) else ""

    def record(self, history_s: int, server: Mapping[str, int]) -> dict[str, Any]:
        """Return everything for `/stats.json`.

        Args:
            history_s: How many seconds' records to include.
            server: What the server has counted.
        """
        run = self._snapshot()
        with self._lock:  # the run waits for it: what takes time comes after
            now, at, status, losses = self._clock(), self._frame_at, self._status, dict(self._losses)
            recent, seconds = list(self._recent), list(self._seconds)
        latency = Percentiles.of(recent)
        return {
            "schema": SCHEMA,
            **self._about,
            "time": round(now, 3),
            "uptime_s": round(now - self._begin, 1),
            "state": status.state.value,
            "cause": status.cause.value if status.cause else None,
            "detail": status.detail,
            "state_for_s": round((self._monotonic_ns() - status.since_ns) / 1e9, 1),
            "captured": run.captured,
            "shown": run.shown,
            "dropped": run.dropped_late,
            "reconnects": run.reconnects,
            "losses": losses,
            "fps": round(run.fps, 2),
            "infer_ms": _round(run.infer_ms),
            "latency": None if latency is None else {k: _round(v) for k, v in asdict(latency).items()},
            "frame_age_s": None if at is None else round(now - at, 1),
            "server": dict(server),
            "history": [asdict(second) for second in seconds[-history_s:]] if history_s else [],
        }

    def metrics(self, server: Mapping[str, int], encoded: Mapping[str, int]) -> str:
        """Return everything in Prometheus's text format, 0.0.4.

        Args:
            server: What the server has counted.
            encoded: Pictures encoded of each kind of view.
        """
        run, memory = self._snapshot(), resident_mb()
        with self._lock:
            buckets, latency_s, state = self._buckets[:], self._latency_s, self._status.state
            # Each cause from the start: Prometheus sees no rise of a series that begins with its first loss.
            losses, frame_at = dict.fromkeys((cause.value for cause in Cause), 0) | self._losses, self._frame_at
        info = {k: v for k, v in self._about.items() if isinstance(v, str) and v}
        lines = [
            *_metric("lfd_run_info", "gauge", "What runs, as labels.", [(info, 1)]),
            *_metric("lfd_frames_captured_total", "counter", "Frames the source gave.", run.captured),
            *_metric("lfd_frames_shown_total", "counter", "Frames that went through all sinks.", run.shown),
            *_metric("lfd_frames_dropped_total", "counter", "Frames that gave way to newer ones.", run.dropped_late),
            *_metric("lfd_reconnects_total", "counter", "How often the source came back.", run.reconnects),
            *_metric(
                "lfd_losses_total", "counter", "How often it was lost.", [({"cause": c}, n) for c, n in losses.items()]
            ),
            *_metric("lfd_stream_live", "gauge", "1 while frames come, else 0.", int(state is State.LIVE)),
            *_histogram("lfd_frame_latency_seconds", "From capture to this sink.", buckets, latency_s),
            *_metric("lfd_connections", "gauge", "Open connections of viewers.", server["connections"]),
            *_metric("lfd_connections_refused_total", "counter", "Connections beyond the limit.", server["refused"]),
            *_metric(
                "lfd_pictures_encoded_total", "counter", "Once for all.", [({"view": v}, n) for v, n in encoded.items()]
            ),
            *_metric("process_cpu_seconds_total", "counter", "User and system time.", time.process_time()),
            *_metric("lfd_start_time_seconds", "gauge", "Unix time when the page was opened.", self._begin),
        ]
        if run.infer_ms is not None:
            lines += _metric("lfd_last_inference_seconds", "gauge", "The last inference.", run.infer_ms / 1e3)
        if frame_at is not None:
            lines += _metric("lfd_last_frame_timestamp_seconds", "gauge", "Unix time of the last frame.", frame_at)
        if memory is not None:
            lines += _metric("process_resident_memory_bytes", "gauge", "Resident memory.", memory * 1e6)
        return "\n".join(lines) + "\n"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _metric(name: str, kind: str, text: str, value: float | Sequence[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, number in value if isinstance(value, Sequence) else [({}, value)]:
        yield f"{name}{_labels(labels)} {number}"


def _histogram(name: str, text: str, buckets: Sequence[int], total: float) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    count = 0
    for edge, number in zip((*map(str, BUCKETS_S), "+Inf"), buckets, strict=True):
        count += number
        yield f'{name}_bucket{{le="{edge}"}} {count}'
    yield f"{name}_sum {total}"
    yield f"{name}_count {count}"


def _labels(labels: Mapping[str, str]) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") + '"'

    return f"{{{','.join(f'{key}={quoted(text)}' for key, text in labels.items())}}}" if labels else ""
