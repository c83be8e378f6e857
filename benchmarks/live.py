"""How old a camera's picture is when it is shown, by a model that is three times too slow for it.

    python -m benchmarks.live MODEL.onnx [--source street:?fps=30] [--model-ms 100] [--seconds 60] [--out FILE]

The model is real and then waits until its time is full. The pipeline drops what it cannot show: a shown frame is to be
no older than one source interval and one inference (p99), captured = shown + dropped by counts of source and sink, and
resident memory flat. Beside it the loop that one writes first: a thread reads into a queue, so that nothing is lost,
and what is shown falls behind for as long as it runs.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import numpy as np

from deploy.environment import Environment
from deploy.frames import Frame, FrameSink, FrameSource, StreamStatus
from deploy.pipeline import Pipeline
from deploy.reader import Limits, Stream
from deploy.run_summary import resident_mb
from deploy.session import InferenceSession, class_map, open_session
from deploy.sources import open_source
from deploy.stats import Durations
from lfd.console import guarded
from lfd.errors import LfdError
from lfd.files import write_json
from lfd.preprocess import Image, fit_frame, restore_map

SETTLE_S = 300.0
"""At the beginning buffers are made, the built-in scene fills its caches for 3000 frames, and the heap finds its size.
Memory counts from here on, or from the half of a shorter run."""
MEMORY_EVERY_S = 0.5


class PacedSession:
    """A session of which each run takes a time of its own, or longer where the model is slower than that."""

    def __init__(self, session: InferenceSession, run_ms: float) -> None:
        self._session, self._run_ms = session, run_ms
        self.spec, self.build, self.batch, self.parallel = session.spec, session.build, session.batch, 1
        self.run_ms = Durations()

    def run(self, batch: Image) -> Any:
        """Run, and sleep for what is left of the time."""
        begin = time.perf_counter()
        found = self._session.run(batch)
        time.sleep(max(0.0, self._run_ms / 1e3 - (time.perf_counter() - begin)))
        self.run_ms.add((time.perf_counter() - begin) * 1e3)
        return found

    def close(self) -> None:
        """Leave the session to its owner."""

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CountedSource:
    """A source that counts what was taken from it."""

    def __init__(self, source: FrameSource) -> None:
        self._source, self.info = source, source.info
        self.given = 0

    def __iter__(self) -> Iterator[Frame | StreamStatus]:
        for item in self._source:
            self.given += isinstance(item, Frame)
            yield item

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class AgeSink:
    """Notes each frame's age when it is shown, and memory now and then.

    What it notes has its room from the start: lists that grew by 60 bytes a frame were 50 kB a minute.

    Args:
        seconds: Of the run.
    """

    def __init__(self, seconds: float) -> None:
        self._begin = time.monotonic()
        self.ages = Durations()
        self._memory = np.full((int(seconds / MEMORY_EVERY_S) + 2, 2), -1.0)
        self._noted = 0

    @property
    def memory(self) -> list[tuple[float, float]]:
        """Seconds from the start, and resident MB."""
        return [(float(at), float(mb)) for at, mb in self._memory[: self._noted]]

    def write(self, frame: Frame, class_map: Image) -> None:
        """Take a frame."""
        self.ages.add((time.monotonic_ns() - frame.captured_ns) / 1e6)
        now = time.monotonic() - self._begin
        due = not self._noted or now - self._memory[self._noted - 1, 0] >= MEMORY_EVERY_S
        if due and self._noted < len(self._memory) and (mb := resident_mb()) is not None:
            self._memory[self._noted] = now, mb
            self._noted += 1

    def show_status(self, status: StreamStatus) -> None:
        """Do nothing."""

    def close(self, complete: bool) -> None:
        """Do nothing."""


def slope(samples: list[tuple[float, float]], after_s: float) -> dict[str, float] | None:
    """Fit a line through what was sampled after a while.

    Args:
        samples: (seconds, MB).
        after_s: Earlier ones do not count.

    Returns:
        `mb_per_min` by least squares and `stderr`, its standard error; None with fewer than three samples.
    """
    late = np.array([sample for sample in samples if sample[0] >= after_s])
    if len(late) < 3:
        return None
    x, y = late[:, 0] / 60 - late[:, 0].mean() / 60, late[:, 1] - late[:, 1].mean()
    rate = float(x @ y / (x @ x))
    stderr = math.sqrt(float(((y - rate * x) ** 2).sum()) / (len(late) - 2) / float(x @ x))
    return {"mb_per_min": rate, "stderr": stderr}


def piped(session: InferenceSession, source: FrameSource, sink: FrameSink, seconds: float) -> dict[str, int]:
    """Run the pipeline and return its own counts."""
    pipeline = Pipeline(session, [Stream(source, [sink])], Limits(duration_s=seconds))
    for _ in pipeline.results():
        pass
    summary = pipeline.summary()
    return {"captured": summary.captured, "shown": summary.shown, "dropped": summary.dropped}


def queued(session: InferenceSession, source: FrameSource, sink: FrameSink, seconds: float) -> dict[str, int]:
    """Run a loop behind a reader with a queue, which drops nothing, and return its counts."""
    waiting: queue.Queue[Frame] = queue.Queue()
    captured = shown = 0

    def read() -> None:
        nonlocal captured
        for item in source:
            if isinstance(item, Frame):
                waiting.put(item)
                captured += 1

    reader = threading.Thread(target=read)
    reader.start()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            frame = waiting.get(timeout=seconds)
            classes = class_map(session, fit_frame(frame.image, session.spec.preprocess))
            sink.write(frame, restore_map(classes, session.spec.preprocess, frame.image.shape[:2]))
            shown += 1
    finally:
        source.close()
        reader.join()
    return {"captured": captured, "shown": shown, "waiting": waiting.qsize()}


def watch(
    session: InferenceSession,
    text: str,
    model_ms: float,
    seconds: float,
    job: Callable[[InferenceSession, FrameSource, FrameSink, float], dict[str, int]],
) -> dict[str, Any]:
    """Run a job on a live source and return ages, counts and memory."""
    paced, source = PacedSession(session, model_ms), CountedSource(open_source(text))
    sink = AgeSink(seconds)
    counts = job(paced, source, sink, seconds)
    ages, runs = sink.ages.percentiles(), paced.run_ms.percentiles()
    if ages is None or runs is None or sink.ages.last is None:
        raise LfdError(f"{text}: no frame within {seconds} s")
    return {
        "counts": counts,
        "given_by_the_source": source.given,
        "taken_by_the_sink": sink.ages.count,
        "age": asdict(ages),
        "last_age_ms": sink.ages.last,
        "inference": asdict(runs),
        "allowed_ms": 1e3 * (1 / source.info.fps if source.info.fps else seconds / source.given) + runs.mean_ms,
        "memory": slope(sink.memory, min(SETTLE_S, seconds / 2)),
        "memory_mb": [round(mb, 2) for _, mb in sink.memory],
    }


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--source", default="street:?fps=30", show_default=True, help="A live one.")
@click.option("--model-ms", type=click.FloatRange(1), default=100.0, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="A third for the queue.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of the session; 0 is the runtime's own choice.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write.")
@guarded
def main(model: Path, source: str, model_ms: float, seconds: float, threads: int, out: Path | None) -> None:
    """Watch MODEL on a live source through the pipeline and through a queue; with --out, write the JSON."""
    with open_session(model, threads=threads) as session:
        record: dict[str, Any] = {
            "schema": 1,
            "source": source,
            "model_ms": model_ms,
            "pipeline": watch(session, source, model_ms, seconds, piped),
            "queue": watch(session, source, model_ms, seconds / 3, queued),
            "environment": asdict(Environment.here(threads)),
        }
    for name in ("pipeline", "queue"):
        found = record[name]
        age, counts = found["age"], ", ".join(f"{key} {value}" for key, value in found["counts"].items())
        p99 = "-" if age["p99_ms"] is None else f"{age['p99_ms']:.1f}"
        print(
            f"{name:<9} age p50 {age['p50_ms'] or math.nan:.1f} p99 {p99} max {age['max_ms']:.1f} ms, allowed "
            f"{found['allowed_ms']:.1f}; last {found['last_age_ms']:.0f}; {counts}; memory {found['memory']}"
        )
    if out:
        write_json(out, record)


if __name__ == "__main__":
    main()
