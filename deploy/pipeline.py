"""Source -> model -> sinks in three stages, each a thread, with short queues between them.

A film: every frame, in order, each stage waits for the next. A camera: the newest frame counts,
older ones are dropped and counted. `VideoInfo.live` decides, nothing else. The stage of the sinks is
the caller's own thread, because windows and signals belong to the main one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from deploy.channel import Channel, Ended, Stopped
from deploy.frames import Frame, FrameSink, FrameSource, StopRequested
from deploy.session import InferenceSession, class_map
from deploy.timing import Percentiles
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image, fit_frame, restore_map

QUEUE = 2
"""Frames that wait before a stage, for a film. A camera has one: the newest."""
POLL_S = 0.05
"""How often the main thread looks for Ctrl-C while it waits: a signal does not wake a lock."""
PATIENCE_S = 0.8
"""How long a reader that hangs in its device is waited for at the end. It is a daemon, and left then."""
KEPT_SAMPLES = 100_000
"""Durations kept a stage, the latest: an hour of a camera, in a few megabytes."""
READER_NICE = 10
STAGES = ("read", "fit", "infer", "restore", "write")


@dataclass(frozen=True)
class RunSummary:
    """What a run did. `captured == shown + dropped`.

    Attributes:
        captured: Frames the source gave.
        shown: Frames that went through all sinks.
        dropped_late: Frames of a camera that gave way to a newer one.
        dropped_at_end: Frames that were under way when the run was ended.
        seconds: From the start to the last frame shown.
        fps: Frames shown a second.
        stages: Stage of STAGES -> its duration a frame. `infer` is the model alone, in company of the
            other stages.
        latency: From the moment the source had a frame until all sinks had it.
        rss_start_mb: Resident memory before the first frame; None where the system does not say.
        rss_end_mb: Likewise after the last.
        miou: Against the truth, where the source knows it and its classes are the model's.
        interrupted: Whether Ctrl-C or SIGTERM ended it.
    """

    captured: int
    shown: int
    dropped_late: int
    dropped_at_end: int
    seconds: float
    fps: float
    stages: Mapping[str, Percentiles | None]
    latency: Percentiles | None
    rss_start_mb: float | None
    rss_end_mb: float | None
    miou: float | None
    interrupted: bool

    @property
    def dropped(self) -> int:
        """Frames captured and not shown."""
        return self.dropped_late + self.dropped_at_end


def run(
    session: InferenceSession,
    source: FrameSource,
    sinks: Sequence[FrameSink],
    max_frames: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> RunSummary:
    """Run a model on every frame of a source and hand the class maps to the sinks.

    The source and the sinks are closed in every case; the session stays the caller's. In the main
    thread, Ctrl-C and SIGTERM end the run with what was written so far kept, and a second one ends it
    at once.

    Args:
        session: The model.
        source: Frames.
        sinks: Written in turn, in this thread.
        max_frames: Frames after which to end.
        progress: Called after each frame with the number shown so far.

    Raises:
        LfdError: What the first stage to fail raised; the others have ended then.
    """
    return _Run(session, source, sinks, max_frames, progress).execute()


class _Run:
    def __init__(
        self,
        session: InferenceSession,
        source: FrameSource,
        sinks: Sequence[FrameSink],
        max_frames: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._session, self._source, self._sinks = session, source, sinks
        self._max_frames, self._progress = max_frames, progress
        self._live = source.info.live
        size = 1 if self._live else QUEUE
        self._fitted: Channel[tuple[Frame, Image]] = Channel(size, newest=self._live)
        self._inferred: Channel[tuple[Frame, Image]] = Channel(size, newest=False)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._interrupted = False
        self._captured = self._shown = self._late = 0
        self._samples = {name: deque[float](maxlen=KEPT_SAMPLES) for name in (*STAGES, "latency")}
        known = source.info.labels
        scored = known is not None and known.names == session.spec.labels.names
        self._matrix = ConfusionMatrix(len(session.spec.labels)) if scored else None

    def execute(self) -> RunSummary:
        rss_start = resident_mb()
        begin = end = time.perf_counter()
        workers = [
            threading.Thread(target=self._guarded, args=(stage,), name=f"lfd-{name}", daemon=True)
            for name, stage in (("read", self._read), ("infer", self._infer))
        ]
        with self._signals():
            try:
                for worker in workers:
                    worker.start()
                self._output()
            except (Stopped, StopRequested):
                pass
            except BaseException as error:
                self._fail(error)
            end = time.perf_counter()
            self._finish(workers)
        if self._error is not None:
            raise self._error
        seconds = end - begin
        summaries = {name: Percentiles.of(list(samples)) for name, samples in self._samples.items()}
        return RunSummary(
            captured=self._captured,
            shown=self._shown,
            dropped_late=self._late,
            dropped_at_end=self._captured - self._shown - self._late,
            seconds=seconds,
            fps=self._shown / seconds,
            stages={name: summaries[name] for name in STAGES},
            latency=summaries["latency"],
            rss_start_mb=rss_start,
            rss_end_mb=resident_mb(),
            miou=self._miou(),
            interrupted=self._interrupted,
        )

    def _read(self) -> None:
        _give_way()
        preprocess = self._session.spec.preprocess
        frames = iter(self._source)
        limit = None if self._live else self._max_frames
        while limit is None or self._captured < limit:
            with self._timed("read"):
                frame = next(frames, None)
            if frame is None:
                break
            self._captured += 1
            with self._timed("fit"):
                fitted = fit_frame(frame.image, preprocess)
            self._late += self._fitted.put((frame, fitted))
        self._fitted.end()

    def _infer(self) -> None:
        try:
            while True:
                item = self._fitted.get()
                if item is not None:
                    with self._timed("infer"):
                        classes = class_map(self._session, item[1])
                    # The session's array lives until its next run only.
                    self._inferred.put((item[0], classes.copy()))
        except Ended:
            self._inferred.end()

    def _output(self) -> None:
        preprocess = self._session.spec.preprocess
        while not self._interrupted and not (self._max_frames and self._shown >= self._max_frames):
            try:
                item = self._inferred.get(POLL_S)
            except Ended:
                return
            if item is None:
                continue
            frame, classes = item
            with self._timed("restore"):
                restored = restore_map(classes, preprocess, (frame.image.shape[0], frame.image.shape[1]))
            with self._timed("write"):
                for sink in self._sinks:
                    sink.write(frame, restored)
            self._samples["latency"].append((time.monotonic_ns() - frame.captured_ns) / 1e6)
            self._shown += 1
            if self._matrix is not None and frame.truth is not None:
                self._matrix.update(frame.truth, restored)
            if self._progress is not None:
                self._progress(self._shown)

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Stopped:
            pass
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        self._stop()

    def _stop(self) -> None:
        self._fitted.stop()
        self._inferred.stop()

    def _finish(self, workers: Sequence[threading.Thread]) -> None:
        """End the stages, then close the source and the sinks; the first failure is the one that counts."""
        self._stop()
        self._closing(self._source.close)
        reader, inferrer = workers
        if inferrer.ident is not None:
            inferrer.join()  # one inference at most: its session must not be closed under it
        if reader.ident is not None:
            reader.join(PATIENCE_S)
        for sink in self._sinks:
            self._closing(lambda sink=sink: sink.close(self._error is None))  # type: ignore[misc]

    def _closing(self, close: Callable[[], None]) -> None:
        try:
            close()
        except BaseException as error:
            self._fail(error)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._samples[stage].append((time.perf_counter() - begin) * 1e3)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a wish, so that no write is torn; the second one interrupts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def wish(number: int, at: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        # A signal that the parent ignores (nohup) stays ignored.
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before: list[tuple[signal.Signals, Any]] = [(number, signal.signal(number, wish)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _miou(self) -> float | None:
        value = self._matrix.miou() if self._matrix is not None else float("nan")
        return None if np.isnan(value) else value


def _give_way() -> None:
    """Lower this thread's priority, where the system has one for each thread (Linux).

    The reader has a whole inference to prepare the next frame in, and the model's threads leave gaps; at equal
    priority it pushes one of them aside, and all others wait for that one.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), READER_NICE)


def resident_mb() -> float | None:
    """Return this process's resident memory in MB; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
