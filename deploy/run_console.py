"""What `lfd-run` says and writes while it runs: how streams are, the progress line, and the statistics file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from deploy.frames import State, StreamStatus
from deploy.run_summary import open_descriptors, resident_mb, thread_count
from deploy.stats import StreamStats
from deploy.texts import redact
from deploy.timing import Percentiles
from lfd.errors import SinkError
from lfd.files import check_free

PROGRESS_S = 0.25
ANNOUNCE_S = 1.0
"""Least time between two lines on one stream; of what happens in between the last is said."""


class Console:
    """Keeps the terminal up to date.

    Args:
        names: What each stream is called, without credentials.
        stats: Of each stream.
        total: Frames that will be shown in all; None when that is not known.
        progress: Whether to keep a line with the number of frames.
        quiet: Whether to say nothing.
        out: Where to write.
        clock: Seconds, monotonic.
        trouble: Returns what has gone wrong that does not end the run; said once, also when quiet.
    """

    def __init__(
        self,
        names: Sequence[str],
        stats: Sequence[StreamStats],
        total: int | None,
        progress: bool,
        quiet: bool,
        out: TextIO,
        clock: Callable[[], float] = time.monotonic,
        trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._names, self._stats, self._total = names, stats, total
        self._progress, self._quiet, self._out, self._clock = progress, quiet, out, clock
        self._trouble, self._warned = trouble, False
        self._begin = self._drawn_at = clock()
        self._said = [State.LIVE] * len(names)
        self._said_at = [-ANNOUNCE_S] * len(names)
        self._news: dict[int, StreamStatus] = {}
        self._lost_ns: dict[int, int] = {}

    def status(self, index: int, status: StreamStatus) -> None:
        """Take in that a stream has changed."""
        if status.state is State.LOST:
            self._lost_ns.setdefault(index, status.since_ns)
        if not self._quiet:
            self._news[index] = status
            self._announce()

    def tick(self) -> None:
        """Say what is due; called often."""
        now = self._clock()
        self._announce()
        self._warn()
        if self._progress and now - self._drawn_at >= PROGRESS_S:
            self._drawn_at = now
            shown = sum(stats.shown for stats in self._stats)
            of = f" of {self._total}" if self._total else ""
            self._out.write(f"\r\033[K{shown}{of} frames, {shown / (now - self._begin):.1f} a second")
            self._out.flush()

    def end(self) -> None:
        """Say what has gone wrong, and take the progress line away."""
        self._warn()
        self._clear()

    def _warn(self) -> None:
        if not self._warned and (trouble := self._trouble()) is not None:
            self._warned = True
            self._clear()
            self._out.write(f"warning: {trouble}\n")
            self._out.flush()

    def _clear(self) -> None:
        if self._progress:
            self._out.write("\r\033[K")
            self._out.flush()

    def _announce(self) -> None:
        now = self._clock()
        for index in [i for i in self._news if now - self._said_at[i] >= ANNOUNCE_S]:
            status = self._news.pop(index)
            if status.state is self._said[index] or (status.state is State.ENDED and len(self._names) == 1):
                if status.state is State.LIVE:  # back before its loss was said
                    self._lost_ns.pop(index, None)
                continue
            self._said[index], self._said_at[index] = status.state, now
            self._clear()
            self._out.write(f"{self._names[index]}: {self._words(index, status)}\n")
            self._out.flush()

    def _words(self, index: int, status: StreamStatus) -> str:
        if status.state is State.ENDED:
            return f"ended ({redact(status.detail)})" if status.detail else "ended"
        if status.state is State.LIVE:
            seconds = (status.since_ns - self._lost_ns.pop(index, status.since_ns)) / 1e9
            return f"live again after {seconds:.1f} s"
        cause = status.cause.value if status.cause else "no cause known"
        again = "" if status.retry_in_s is None else f"; next try in {status.retry_in_s:.1f} s"
        return f"lost, {cause}" + (f" ({status.detail})" if status.detail else "") + again


class StatsFile:
    """A line of JSON every few seconds, each written out at once, so that `tail -f` shows the run.

    Args:
        path: File; it stays, whatever becomes of the run.
        names: What each stream is called, without credentials.
        stats: Of each stream.
        every_s: Seconds between two lines.
        overwrite: Whether the file may be replaced.
        clock: Seconds, monotonic.

    Raises:
        UsageError: The file is there.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        stats: Sequence[StreamStats],
        every_s: float,
        overwrite: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_free(path, overwrite)
        self._path, self._names, self._stats, self._every_s, self._clock = path, names, stats, every_s, clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._begin = self._last = clock()
        self._seen = [(0, 0)] * len(stats)

    def tick(self) -> None:
        """Write a line when one is due; called often.

        Raises:
            SinkError: The disk is full.
        """
        if self._clock() - self._last >= self._every_s:
            self._write()

    def close(self) -> None:
        """Write the last line, over what is left of the time."""
        try:
            if not self._file.closed:
                self._write(last=True)
        finally:
            self._file.close()

    def _write(self, last: bool = False) -> None:
        now = self._clock()
        since_s, self._last = now - self._last, now
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "seconds": round(now - self._begin, 3),
            "rss_mb": resident_mb(),
            "threads": thread_count(),
            "descriptors": open_descriptors(),
            "streams": [self._stream(index, since_s, last) for index in range(len(self._stats))],
        }
        try:
            self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise SinkError(
                f"{self._path}: cannot be written ({error.strerror}). Fix: free space, or write elsewhere"
            ) from error

    def _stream(self, index: int, since_s: float, last: bool) -> dict[str, object]:
        stats = self._stats[index]
        now = stats.snapshot()
        shown_before, timed_before = self._seen[index]
        latency = Percentiles.of(stats.latency.since(timed_before))
        self._seen[index] = now.shown, stats.latency.count
        return {
            "source": self._names[index],
            "state": now.state.value,
            "captured": now.captured,
            "shown": now.shown,
            "dropped": now.captured - now.shown if last else now.dropped_late,  # what is under way then never is shown
            "skipped": stats.skipped,
            "reconnects": now.reconnects,
            "fps": round((now.shown - shown_before) / since_s, 3) if since_s > 0 else 0.0,
            "latency": asdict(latency) if latency else None,
        }
