"""Source -> model -> sinks: a reader thread a stream, inference threads, and the caller's own for the sinks.

A file: every frame, in order, as many inferred side by side as the session takes; each stage waits for the next. A live
source: the newest frame counts, older ones are dropped and counted. `VideoInfo.live` decides, nothing else;
`deploy.exchange` has the rules. The sinks are written in the caller's thread, because windows and signals belong to the
main one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

from deploy.collect import Collector
from deploy.exchange import Ended, Exchange, Stopped
from deploy.frames import Frame, FrameSink, FrameSource, State, StopRequested, StreamStatus
from deploy.inference import Found, Inference
from deploy.reader import Fitted, Limits, Stream, read
from deploy.result import Result
from deploy.run_summary import RunSummary, StreamSummary, resident_mb, thread_count
from deploy.session import InferenceSession
from deploy.smoothing import Smoothing
from deploy.truth import TruthScore
from lfd.errors import SourceError
from lfd.preprocess import Image, restore_map

POLL_S = 0.05
"""How long the caller's thread waits at most: then it looks for signals, and tells the sinks how their stream is."""
PATIENCE_S = 0.8
"""How long stages that hang, in a device or in the model, are waited for at the end; then they are left: daemons."""


class Pipeline:
    """A model on some streams, once.

    Args:
        session: The model; it stays the caller's, see `busy`.
        streams: Their sources and sinks are closed in every case.
        limits: Where to end.
        stop: Asked often; true ends the run, and what was written is kept.
        on_tick: Called some 20 times a second or more, in the caller's thread.
        on_status: Called with a stream's position when how it is has changed, likewise.
        smoothing: How results are steadied; None leaves them as they are.
        collector: Keeps frames worth learning from; closed in every case.

    Raises:
        ModelError: The model takes batches of several frames only.
        UsageError: The smoothing needs another output than the model's.
    """

    def __init__(
        self,
        session: InferenceSession,
        streams: Sequence[Stream],
        limits: Limits | None = None,
        stop: Callable[[], bool] = lambda: False,
        on_tick: Callable[[], None] = lambda: None,
        on_status: Callable[[int, StreamStatus], None] = lambda index, status: None,
        smoothing: Smoothing | None = None,
        collector: Collector | None = None,
    ) -> None:
        self._spec, self._streams, self._limits = session.spec, streams, limits or Limits()
        self._stop_asked, self._on_tick, self._on_status = stop, on_tick, on_status
        self._exchange: Exchange[Fitted, Found] = Exchange(
            [stream.source.info.live for stream in streams],
            on_drop=lambda index, frames: streams[index].stats.drop(frames),
        )
        self._inference = Inference(session, streams, self._exchange, smoothing, collector)
        self._parallel = 1 if any(stream.source.info.live for stream in streams) else session.parallel
        self._collector = collector
        self._error: BaseException | None = None
        self.given_up: SourceError | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._interrupted = self._closed = False
        self._threads: list[threading.Thread] = []
        self._seconds = 0.0
        self._rss = resident_mb(), resident_mb()
        self._heard_at = [0.0] * len(streams)
        # Not `stats.status`, which runs ahead: a stream may have ended when its last frames are still inferred.
        self._told = [stream.stats.status for stream in streams]
        self._scores = [TruthScore(session.spec.labels, stream.source.info) for stream in streams]

    @property
    def busy(self) -> bool:
        """Whether an inference would not end in time and was left behind: the session must not be closed under it."""
        return self._inference.busy

    def results(self) -> Generator[Result, None, None]:
        """Run, and yield each frame's result when its sinks have it. Closing the iterator ends the run.

        Raises:
            BaseException: What the first stage to fail raised, all others having ended; an LfdError for all that a
                user can meet. A stream that is given up or cannot be read to its end ends alone, and what it gave is
                kept: `given_up` is raised when the others have ended.
        """
        self._rss = resident_mb(), None
        begin = time.perf_counter()
        self._threads = [self._thread("infer", self._inference.run) for _ in range(self._parallel)]
        self._threads += [self._thread("read", partial(self._read, index)) for index in range(len(self._streams))]
        try:
            for thread in self._threads:
                thread.start()
            yield from self._output()
        except (Stopped, StopRequested, GeneratorExit):
            pass
        except BaseException as error:
            self._fail(error)
        finally:
            self._seconds = time.perf_counter() - begin
            self.close()

    def close(self) -> None:
        """End the run; done by the iterator at its own end. May be called twice.

        Raises:
            BaseException: The first failure, at the first call.
        """
        if self._closed:
            return
        self._closed = True
        self._finish()
        self._rss = self._rss[0], resident_mb()
        if error := self._error or self.given_up:
            raise error

    def summary(self) -> RunSummary:
        """Return what the run did; after its end."""
        return RunSummary(
            streams=tuple(
                StreamSummary.of(stream.stats, self._seconds, score.miou, score.flicker)
                for stream, score in zip(self._streams, self._scores, strict=True)
            ),
            seconds=self._seconds,
            rss_start_mb=self._rss[0],
            rss_end_mb=self._rss[1],
            threads=thread_count(),
            interrupted=self._interrupted,
            parallel=self._parallel,
            collected=self._collector.collected if self._collector is not None else None,
        )

    def _read(self, index: int) -> None:
        def put_status(status: StreamStatus) -> None:
            stream.stats.change(status)
            self._exchange.put_status(index, status)

        stream = self._streams[index]
        try:
            read(
                stream,
                put=lambda item: self._exchange.put(index, item),
                put_status=put_status,
                preprocess=self._spec.preprocess,
                limits=self._limits,
                stopping=self._stopping,
                gives_way=self._parallel == 1,
            )
        except Exception as error:
            if not self._stopping.is_set():
                if not isinstance(error, SourceError):
                    raise
                self.given_up = self.given_up or error
                put_status(StreamStatus(State.ENDED, time.monotonic_ns(), detail=str(error)))
            # Closing a source under its reader is how a run ends, and the reader may say so.
        self._exchange.end(index)

    def _output(self) -> Iterator[Result]:
        deadline = time.monotonic() + (self._limits.duration_s or float("inf"))
        while time.monotonic() < deadline:
            if self._stop_asked():
                self._interrupted = True
                return
            try:
                item = self._exchange.next(min(POLL_S, max(0.0, deadline - time.monotonic())))
            except Ended:
                return
            if item is not None:
                index, found = item
                if isinstance(found, StreamStatus):
                    self._tell(index, found, changed=True)
                else:
                    yield self._write(index, *found)
            self._remind()
            self._on_tick()

    def _write(self, index: int, frame: Frame, classes: Image, infer_ms: float) -> Result:
        stream, spec = self._streams[index], self._spec
        begin = time.perf_counter()
        restored = restore_map(classes, spec.preprocess, (frame.image.shape[0], frame.image.shape[1]))
        restored_at = time.perf_counter()
        for sink in stream.sinks:
            sink.write(frame, restored)
        stream.stats.stages["restore"].add((restored_at - begin) * 1e3)
        stream.stats.stages["write"].add((time.perf_counter() - restored_at) * 1e3)
        latency_ms = stream.stats.show(frame.captured_ns)
        self._scores[index].update(restored, frame.truth)
        self._heard_at[index] = time.monotonic()
        if stream.source.info.live and stream.stats.shown == self._limits.max_frames:
            self._exchange.close(index)
            ended = StreamStatus(State.ENDED, time.monotonic_ns())
            stream.stats.change(ended)
            self._tell(index, ended, changed=True)
        return Result(frame, restored, spec.labels, index, latency_ms, infer_ms)

    def _tell(self, index: int, status: StreamStatus, changed: bool = False) -> None:
        for sink in self._streams[index].sinks:
            sink.show_status(status)
        self._heard_at[index] = time.monotonic()
        if changed:
            self._told[index] = status
            self._on_status(index, status)

    def _remind(self) -> None:
        """Tell sinks that have got nothing for a while how their stream is: windows live on it."""
        now = time.monotonic()
        for index, heard_at in enumerate(self._heard_at):
            if now - heard_at >= POLL_S:
                self._tell(index, self._told[index])

    def _thread(self, name: str, stage: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(stage,), name=f"lfd-{name}", daemon=True)

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
        self._end()

    def _end(self) -> None:
        self._stopping.set()
        self._exchange.stop()

    def _finish(self) -> None:
        """End the stages, then close the sources and the sinks; the first failure is the one that counts."""
        self._end()
        threads = [thread for thread in self._threads if thread.ident is not None]
        for stream in self._streams:
            # A device that hangs may hang its closing too.
            thread = self._thread("close", stream.source.close)
            thread.start()
            threads.append(thread)
        deadline = time.monotonic() + PATIENCE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for sink in [sink for stream in self._streams for sink in stream.sinks]:
            self._close(partial(sink.close, self._error is None))
        if self._collector is not None:
            self._close(self._collector.close)

    def _close(self, close: Callable[[], None]) -> None:
        try:
            close()
        except BaseException as error:
            self._fail(error)


def run(
    session: InferenceSession,
    source: FrameSource,
    sinks: Sequence[FrameSink],
    max_frames: int | None = None,
    progress: Callable[[int], None] = lambda shown: None,
) -> RunSummary:
    """Run a model on one source to its end and hand the class maps to the sinks.

    Args:
        session: The model; it stays the caller's.
        source: Frames; closed in every case.
        sinks: Written in turn, in this thread; likewise.
        max_frames: Frames after which to end.
        progress: Called after each frame with the number shown so far.

    Raises:
        LfdError: What the first stage to fail raised; the others have ended then.
    """
    pipeline = Pipeline(session, [Stream(source, sinks)], Limits(max_frames))
    for shown, _ in enumerate(pipeline.results(), 1):
        progress(shown)
    return pipeline.summary()
