"""Whether a run can go on for ever: many frames of a live source that is lost again and again.

    python -m benchmarks.soak MODEL.onnx [--frames 200000] [--out benchmarks/results/soak.json]

The built-in scene, as fast as it can be painted, behind the same `Reconnecting` as a network camera. Every few
thousand frames it is cut off, by each cause in turn, and refuses the first attempt to open it again. Resident memory,
threads and descriptors are sampled on the way. A line is fitted to the memory of the second half, and its slope given
with a 95 % confidence interval; neighbouring samples hang together, so that the line goes through the means of ten
blocks.
Ends with 1 when the whole interval lies above what matters, or when a thread or a descriptor is left over.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from deploy.environment import Environment
from deploy.frames import Cause, Frame, FrameSource, StreamStatus
from deploy.pipeline import Pipeline
from deploy.reader import Limits, Stream
from deploy.run_summary import RunSummary, open_descriptors, resident_mb, thread_count
from deploy.session import InferenceSession, open_session
from deploy.sources import StreamError
from deploy.sources.address import Options
from deploy.sources.reconnect import Backoff, Reconnecting
from deploy.sources.scene import StreetSource
from lfd.files import check_free, write_json

CAUSES = (Cause.CLOSED, Cause.TIMED_OUT, Cause.UNREADABLE)
WARM_UP = 0.5
"""Share of the samples that the line does not see: outages leave the heap a page more here and there, more and more
rarely, in the first 70,000 frames."""
BLOCKS = 10
T_975 = 2.306
"""Student's t for BLOCKS - 2 degrees of freedom."""
MATTERS_KB = 0.5
"""kB a 1000 frames: 1.3 MB a day of 30 frames a second. One page of 4 kB more in the whole run is below it, and would
put the interval above zero."""


@dataclass(frozen=True)
class Sample:
    """This process after so many frames."""

    frames: int
    rss_mb: float
    threads: int
    descriptors: int


@dataclass(frozen=True)
class Slope:
    """Growth of the resident memory, kB a thousand frames, with its 95 % confidence interval."""

    kb_per_1000: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Slope:
        """Fit a line by least squares to the blocks' means.

        Raises:
            ValueError: There are too few samples.
        """
        kept = samples[round(WARM_UP * len(samples)) :]
        if len(kept) < BLOCKS:
            raise ValueError(f"{len(samples)} samples; the line needs {BLOCKS} after the warm-up")
        blocks = np.array_split(np.array([(s.frames / 1e3, s.rss_mb * 1e3) for s in kept]), BLOCKS)
        x, y = np.array([block.mean(0) for block in blocks]).T
        centred = x - x.mean()
        slope = float(centred @ y / (centred @ centred))
        residuals = y - y.mean() - slope * centred
        error = T_975 * float(np.sqrt(residuals @ residuals / (BLOCKS - 2) / (centred @ centred)))
        return cls(slope, slope - error, slope + error)


class CutOff:
    """A live source that goes on where the one before was cut off, and is cut off itself after so many frames."""

    def __init__(self, address: str, frames: int, cause: Cause) -> None:
        self._inner, self._frames, self._cause = StreetSource(address, Options()), frames, cause
        self.info = self._inner.info

    def __iter__(self) -> Iterator[Frame | StreamStatus]:
        for item in self._inner:
            if isinstance(item, Frame) and item.index >= self._frames:
                raise StreamError(self._cause, "street:", "cut off on purpose")
            yield item

    def close(self) -> None:
        """End the iteration."""
        self._inner.close()


def lossy_source(size: str, every: int) -> FrameSource:
    """Return the scene behind `Reconnecting`, cut off every so many frames."""
    causes, refuses = cycle(CAUSES), cycle((False, True))

    def open_stream() -> FrameSource:
        if next(refuses):
            raise StreamError(Cause.REFUSED, "street:", "refused on purpose")
        # 1000 a second is more than can be painted: as fast as it goes, and live.
        return CutOff(f"street:?size={size}&fps=1000", every, next(causes))

    return Reconnecting(open_stream, backoff=Backoff(first_s=0.01, longest_s=0.02))


def soak(
    session: InferenceSession, frames: int, every: int, sample_every: int, size: str
) -> tuple[list[Sample], RunSummary]:
    """Run so many frames through and return the samples, the first before the run and the last after it."""
    pipeline = Pipeline(session, [Stream(lossy_source(size, every))], Limits(max_frames=frames))
    # The samples' own memory is there before the first: 130 bytes each were a slope of 0.6 kB a 1000 frames.
    table = np.full((frames // sample_every + 2, 4), -1.0)
    table[0] = take(0)
    for number, _ in enumerate(pipeline.results(), 1):
        if number % sample_every == 0:
            table[number // sample_every] = take(number)
    gc.collect()
    table[-1] = take(frames)
    return [Sample(int(row[0]), float(row[1]), int(row[2]), int(row[3])) for row in table], pipeline.summary()


def take(frames: int) -> tuple[int, float, int, int]:
    """Return what a Sample of this process holds."""
    return frames, resident_mb() or float("nan"), thread_count(), open_descriptors() or 0


def left_over(samples: Sequence[Sample]) -> list[str]:
    """Return what the last sample has more of than the first."""
    pairs = [(name, getattr(samples[0], name), getattr(samples[-1], name)) for name in ("threads", "descriptors")]
    return [f"{after - before} {name}" for name, before, after in pairs if after > before]


def measure(model: Path, frames: int, every: int, samples: int, size: str) -> dict[str, Any]:
    """Soak a model and return the record."""
    with open_session(model) as session:
        soak(session, 200, 50, 100, size)  # what is made once, such as OpenCV's threads, is there now
        begin = time.monotonic()
        taken, summary = soak(session, frames, every, max(1, frames // samples), size)
        seconds = time.monotonic() - begin
        name, build = session.spec.model, asdict(session.build)
    (stream,) = summary.streams
    return {
        "what": "resident memory, threads and descriptors of a live run whose source is lost again and again",
        "model": name,
        "build": build,
        "scene_size": size,
        "lost_every": every,
        "seconds": seconds,
        "captured": stream.captured,
        "shown": stream.shown,
        "dropped": stream.dropped,
        "reconnects": stream.reconnects,
        "losses": dict(stream.losses),
        "slope": asdict(Slope.of(taken[1:-1])),
        "left_over": left_over(taken),
        "samples": [asdict(sample) for sample in taken],
        "environment": asdict(Environment.here()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, with --out, write the JSON; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=2500, help="frames between two losses")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--size", default="120x160", help="of the scene, HEIGHTxWIDTH")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(arguments)
    if args.out:
        check_free(args.out, args.overwrite)
    record = measure(args.model, args.frames, args.every, args.samples, args.size)
    slope = Slope(**record["slope"])
    first, last = record["samples"][0], record["samples"][-1]
    print(
        f"{record['shown']} frames in {record['seconds']:.0f} s, {record['reconnects']} times lost and back\n"
        f"memory       {first['rss_mb']:.1f} MB at the start, {last['rss_mb']:.1f} MB at the end\n"
        f"slope        {slope.kb_per_1000:+.2f} kB a 1000 frames, 95 % interval {slope.low:+.2f} to {slope.high:+.2f}\n"
        f"threads      {first['threads']} before, {last['threads']} after\n"
        f"descriptors  {first['descriptors']} before, {last['descriptors']} after"
    )
    if args.out:
        write_json(args.out, record)
    return 1 if slope.low > MATTERS_KB or record["left_over"] else 0


if __name__ == "__main__":
    sys.exit(main())
