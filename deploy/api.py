"""A run as a loop over its results; see `run`."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType

from deploy.collect import Bounds, check_folder
from deploy.frames import FrameSink, FrameSource
from deploy.opening import open_collector, open_model, open_streams
from deploy.overlay import Overlay
from deploy.pipeline import Pipeline
from deploy.reader import Limits
from deploy.result import Result
from deploy.run_summary import RunSummary
from deploy.session import InferenceSession
from deploy.sinks import About, check_outputs
from deploy.smoothing import Smoothing
from deploy.texts import redact
from lfd.errors import UsageError

__all__ = ["Result", "Run", "run"]


class Run(Iterator[Result]):
    """The results of a run, one after another; a context manager.

    The stages start with the first result that is asked for. They end, and what the run opened is closed, with the
    last result, at the first failure, with `close`, at the end of a `with` block, when a `for` loop over it is left and
    nothing else holds it, and when the program ends. What sinks have got by then is kept.
    """

    def __init__(self, pipeline: Pipeline, own: InferenceSession | None) -> None:
        self._pipeline, self._results = pipeline, pipeline.results()
        # It also runs before the interpreter goes down, under which no thread may be at work and none can begin.
        self._close = weakref.finalize(self, _close, pipeline, self._results, own)

    def __next__(self) -> Result:
        """Return the next result.

        Raises:
            LfdError: What the first stage to fail raised.
        """
        try:
            return next(self._results)
        except BaseException:
            self.close()
            raise

    @property
    def summary(self) -> RunSummary:
        """What the run did, once it has ended."""
        return self._pipeline.summary()

    def close(self) -> None:
        """End the run. May be called twice.

        Raises:
            LfdError: A source or sink could not be closed.
        """
        self._close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(pipeline: Pipeline, results: Generator[Result, None, None], own: InferenceSession | None) -> None:
    try:
        results.close()
        pipeline.close()
    finally:
        if own is not None and not pipeline.busy:
            own.close()


def run(
    model: str | Path | InferenceSession,
    source: str | Path | int | FrameSource | Sequence[str | FrameSource],
    sinks: str | Path | Sequence[str | FrameSink] = (),
    *,
    backend: str | None = None,
    threads: int = 0,
    max_frames: int | None = None,
    duration_s: float | None = None,
    fps: float | None = None,
    stride: int = 1,
    loop: bool = False,
    overwrite: bool = False,
    smooth: str | float | None = None,
    collect: str | Path | None = None,
    collect_max: int = 500,
    collect_mb: float = 1000.0,
) -> Run:
    """Run a model on every frame of a source, and get frames with their class maps one by one.

    A file gives every frame, and waits for the loop's body; a live source the newest one, so that a slow body makes
    no old pictures. How many people there are in the built-in scene:

        import cv2
        import deploy

        for result in deploy.run("student.onnx", "street:?frames=50"):
            people = result.class_map == result.labels.names.index("Pedestrian")
            count, _ = cv2.connectedComponents(people.astype("uint8"))
            print(result.frame.index, count - 1)  # the first component is the background

    Args:
        model: An .onnx file or an engine of lfd-export; or an open session, which stays open.
        source: What `lfd-run` takes, a path or a camera's index, or an object with the methods of
            `deploy.frames.FrameSource`. Of several, `Result.stream` is the position.
        sinks: Likewise, with `deploy.frames.FrameSink`; written before each result is returned. For one source only.
        backend: A runtime's name, or "auto"; None takes the file's own.
        threads: Threads of the model; 0 leaves it to the runtime. Two frames of files share them.
        max_frames: Results of each source after which to end.
        duration_s: Seconds after which to end.
        fps: Most frames a second of each source; a live one's others are skipped, a file is read at that pace.
        stride: Every so manieth frame, the others are skipped.
        loop: Start files again at their end.
        overwrite: Whether sinks may replace files.
        smooth: Steadies results over so many seconds, or "0.2s" or "hysteresis:0.2s"; see `deploy.smoothing`.
        collect: A folder to keep frames in that are worth learning from; see `deploy.collect`.
        collect_max: Frames that it may hold.
        collect_mb: Megabytes likewise.

    Raises:
        LfdError: Something cannot be opened. While iterating: what the first stage to fail raised.
    """
    limits = Limits(max_frames, duration_s, fps, stride)
    smoothing = None if smooth is None else Smoothing.parse(smooth)
    bounds = Bounds(collect_max, collect_mb)
    if isinstance(source, str | Path | int):
        source = str(source)
    if isinstance(sinks, str | Path):
        sinks = (str(sinks),)
    sources = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    if not sources:
        raise UsageError("no source; expected one or several")
    if sinks and len(sources) > 1:
        raise UsageError(f"sinks beside {len(sources)} sources; expected one source, or lfd-run --add")
    opened = not isinstance(model, str | Path)
    session = model if not isinstance(model, str | Path) else None
    texts = [text for text in sinks if isinstance(text, str)]
    origins = [text for text in sources if isinstance(text, str)]
    if texts:
        check_outputs(texts, origins, None if opened else Path(str(model)), overwrite)
    if collect is not None:
        check_folder(Path(collect), origins, texts, overwrite)
    with ExitStack() as undo:
        if session is None:
            session = undo.enter_context(closing(open_model(Path(str(model)), backend, threads, sources)))
        labels = session.spec.labels
        names = [redact(text) if isinstance(text, str) else "" for text in sources]
        about = [About(session.spec.model, session.build.backend, name) for name in names]
        taken = [sinks] if sinks else [()] * len(sources)
        streams = open_streams(sources, taken, lambda: Overlay(labels), loop, about=about, stride=stride)
        for stream in streams:
            undo.callback(stream.discard)
        collector = None
        if collect is not None:
            collector = open_collector(Path(collect), bounds, session, names, streams)
            undo.callback(collector.close)
        pipeline = Pipeline(session, streams, limits, smoothing=smoothing, collector=collector)
        undo.pop_all()
    return Run(pipeline, None if opened else session)
