"""What a run did, as values and as a table."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.stats import StreamStats
from deploy.timing import Percentiles, samples_needed

if TYPE_CHECKING:
    from deploy.collect import Collected

SCHEMA = 2
"""Of the summary's JSON. 2: a block for each stream, `skipped`, reconnects and threads."""


@dataclass(frozen=True)
class StreamSummary:
    """What a run did with one stream. `captured == shown + dropped`.

    Attributes:
        captured: Frames the source gave, or passed over for a newer one, without those skipped.
        shown: Frames that went through all sinks.
        dropped_late: Frames of a live source that gave way to a newer one, in the source or here.
        dropped_at_end: Frames that were under way when the run was ended.
        skipped: Frames the source gave and stride or fps passed over.
        reconnects: How often the source was lost and came back.
        losses: Cause -> how often the source was lost by it.
        fps: Frames shown a second.
        stages: Stage of STAGES -> its duration a frame, over the latest KEPT_SAMPLES frames. `infer` is the model
            alone, in company of the other stages and of other inferences, for all that went into one run of it;
            `smooth` and `score` are there where results are steadied and frames are collected.
        latency: From the moment the source had a frame until all sinks had it; likewise.
        miou: Against the truth, where the source knows it and its classes are the model's.
        flicker: Share in [0, 1] of pixels whose class changed while their truth did not, see `deploy.flicker`;
            likewise.
    """

    captured: int
    shown: int
    dropped_late: int
    dropped_at_end: int
    skipped: int
    reconnects: int
    losses: Mapping[str, int]
    fps: float
    stages: Mapping[str, Percentiles | None]
    latency: Percentiles | None
    miou: float | None
    flicker: float | None = None

    @property
    def dropped(self) -> int:
        """Frames captured and not shown."""
        return self.dropped_late + self.dropped_at_end

    @classmethod
    def of(cls, stats: StreamStats, seconds: float, miou: float | None, flicker: float | None = None) -> StreamSummary:
        """Read the counts of a stream that has ended."""
        return cls(
            captured=stats.captured,
            shown=stats.shown,
            dropped_late=stats.late,
            dropped_at_end=stats.captured - stats.shown - stats.late,
            skipped=stats.skipped,
            reconnects=stats.reconnects,
            losses=dict(stats.losses),
            fps=stats.shown / seconds if seconds > 0 else 0.0,
            stages={name: durations.percentiles() for name, durations in stats.stages.items()},
            latency=stats.latency.percentiles(),
            miou=miou,
            flicker=flicker,
        )


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        streams: One block each, in the order they were given.
        seconds: From the start to the end of the run.
        rss_start_mb: Resident memory before the first frame; None where the system does not say.
        rss_end_mb: Likewise after the last.
        threads: Threads of this process at the end, the runtime's included; None likewise.
        interrupted: Whether a signal ended it.
        parallel: Inferences side by side.
        collected: What there is in the folder of `--collect`; None without one.
    """

    streams: tuple[StreamSummary, ...]
    seconds: float
    rss_start_mb: float | None
    rss_end_mb: float | None
    threads: int | None
    interrupted: bool
    parallel: int = 1
    collected: Collected | None = None

    @property
    def captured(self) -> int:
        """Of all streams."""
        return sum(stream.captured for stream in self.streams)

    @property
    def shown(self) -> int:
        """Of all streams."""
        return sum(stream.shown for stream in self.streams)

    @property
    def dropped(self) -> int:
        """Of all streams."""
        return sum(stream.dropped for stream in self.streams)

    @property
    def fps(self) -> float:
        """Of all streams together."""
        return sum(stream.fps for stream in self.streams)

    @property
    def stages(self) -> Mapping[str, Percentiles | None]:
        """Of the first stream, in most runs the only one."""
        return self.streams[0].stages

    @property
    def latency(self) -> Percentiles | None:
        """Likewise."""
        return self.streams[0].latency

    @property
    def miou(self) -> float | None:
        """Likewise."""
        return self.streams[0].miou

    def record(self, names: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return it for a JSON file; `names` has what to add to each stream."""
        blocks = zip(names, self.streams, strict=True)
        streams = [{**name, **asdict(stream), "dropped": stream.dropped} for name, stream in blocks]
        return {"schema": SCHEMA, **asdict(self), "streams": streams}


def resident_mb() -> float | None:
    """Return this process's resident memory in MB; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_descriptors() -> int | None:
    """Return how many files, sockets and pipes this process has open; None where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - one of them is the listing's own
    except OSError:
        return None


def thread_count() -> int:
    """Return how many threads this process has, the runtime's included; Python's where the system does not say."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names only
    except OSError:
        return threading.active_count()


def table(summary: RunSummary, titles: Sequence[str]) -> str:
    """Return the summary as an aligned plain-text table, a block a stream under its title.

    A percentile that too few frames have earned is a dash, and the last line says how many it takes.
    """
    lines: list[str] = []
    for title, stream in zip(titles, summary.streams, strict=True):
        lines += [title, *_block(stream, summary), ""]
    if summary.rss_start_mb is not None and summary.rss_end_mb is not None:
        lines.append(
            f"memory   {summary.rss_start_mb:.0f} MB at the start, {summary.rss_end_mb:.0f} MB at the end, "
            f"{summary.threads} threads"
        )
    if (found := summary.collected) is not None:
        lines.append(
            f"kept     {found.kept} frames, {found.total_bytes / 1e6:.1f} MB in {found.folder}"
            + (f"; {found.missed} missed, the disk was behind" if found.missed else "")
        )
    needed = [(f"p{round(100 * p)}", samples_needed(p)) for p in (0.5, 0.9, 0.95, 0.99)]
    fewest = min(stream.shown for stream in summary.streams)
    missing = [f"{name} needs {count}" for name, count in needed if fewest < count]
    if missing:
        lines.append(f"- not enough frames: {', '.join(missing)}")
    return "\n".join(lines)


def _block(stream: StreamSummary, summary: RunSummary) -> list[str]:
    drops = [(stream.dropped_late, "late"), (stream.dropped_at_end, "at the end")]
    causes = ", ".join(f"{count} {cause}" for count, cause in drops if count)
    lines = [
        f"frames   {stream.captured} captured, {stream.shown} shown, {stream.dropped} dropped"
        + (f" ({causes})" if causes else "")
        + (f"; {stream.skipped} skipped" if stream.skipped else ""),
        f"time     {summary.seconds:.2f} s, {stream.fps:.1f} frames a second"
        + (f", {summary.parallel} inferred side by side" if summary.parallel > 1 else ""),
    ]
    if stream.losses:
        causes = ", ".join(f"{count} {cause}" for cause, count in stream.losses.items())
        lines.append(f"lost     {sum(stream.losses.values())} times ({causes}), {stream.reconnects} times back")
    if stream.miou is not None:
        lines.append(f"mIoU     {100 * stream.miou:.2f} % against the scene's truth")
    if stream.flicker is not None:
        lines.append(f"flicker  {100 * stream.flicker:.2f} % of the pixels whose truth stays, from frame to frame")
    lines += ["", f"{'ms':<8}{'mean':>8}{'p50':>8}{'p90':>8}{'p95':>8}{'p99':>8}{'max':>8}"]
    return lines + [_row(name, value) for name, value in {**stream.stages, "latency": stream.latency}.items()]


def _row(name: str, value: Percentiles | None) -> str:
    if value is None:
        return f"{name:<8}" + f"{'-':>8}" * 6
    numbers = (value.mean_ms, value.p50_ms, value.p90_ms, value.p95_ms, value.p99_ms, value.max_ms)
    return f"{name:<8}" + "".join(f"{'-' if n is None else format(n, '.2f'):>8}" for n in numbers)
