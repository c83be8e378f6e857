"""Opening what a run needs, so that a signal or a failure ends it however long an opening takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from deploy.collect import Bounds, Collector
from deploy.environment import usable_cores
from deploy.frames import FrameSink, FrameSource
from deploy.overlay import Overlay
from deploy.reader import Stream
from deploy.session import InferenceSession, open_session
from deploy.sinks import About, open_sink
from deploy.sources import may_be_live, open_source
from deploy.stats import StreamStats

POLL_S = 0.05
PARALLEL = 2
"""Frames of files that are inferred side by side. On two cores two inferences with a thread each took 0.67 to 0.91 of
the time of one after another with two, a frame, and do not wait for each other where decoder and sinks take a core."""


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


def together(calls: Sequence[Callable[[], T]], stop: Callable[[], bool]) -> list[T]:
    """Call slow functions side by side, each in a thread of its own, and return what they give.

    Args:
        calls: Each opens something.
        stop: Asked often; true gives up. What is opened later is closed at once.

    Raises:
        BaseException: What the first call to fail raised; what the others opened is closed.
        KeyboardInterrupt: `stop` asked for it.
    """
    changed = threading.Condition()
    opened: dict[int, T] = {}
    errors: list[BaseException] = []
    given_up = False

    def call(index: int) -> None:
        try:
            value = calls[index]()
        except BaseException as error:
            with changed:
                errors.append(error)
                changed.notify()
            return
        with changed:
            late = given_up
            if not late:
                opened[index] = value
            changed.notify()
        if late:
            value.close()

    for index in range(len(calls)):
        threading.Thread(target=call, args=(index,), name="lfd-open", daemon=True).start()
    try:
        with changed:
            while len(opened) < len(calls) and not errors:
                if stop():
                    raise KeyboardInterrupt("interrupted before the first frame")
                changed.wait(POLL_S)
        if errors:
            raise errors[0]
    except BaseException:
        with changed:
            given_up = True
        for value in opened.values():
            value.close()
        raise
    return [opened[index] for index in range(len(calls))]


def open_model(
    path: Path,
    backend: str | None = None,
    threads: int = 0,
    sources: Sequence[str | FrameSource] = (),
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> InferenceSession:
    """Load a model; see `deploy.session.open_session`.

    Args:
        path: The file.
        backend: Likewise; or "auto", the fastest on this machine of those that can run it.
        threads: Likewise.
        sources: What it will run on. Where all are files, frames are inferred PARALLEL at a time; where one may be live
            one by one, for a result that is as new as it can be.
        say: Told what was chosen, and why.
        stop: See `together`.
    """
    live = any(may_be_live(source) if isinstance(source, str) else source.info.live for source in sources)
    cores = threads or usable_cores()
    parallel = 1 if live or not sources else min(PARALLEL, cores)

    def load() -> InferenceSession:
        if backend != "auto":
            return open_session(path, backend, threads, parallel)
        from deploy import auto  # noqa: PLC0415 - only who asks for it pays for it

        # Measured with the threads that an inference will have: runtimes differ in what a second one gains.
        each = threads if parallel == 1 else cores // parallel
        return open_session(path, auto.choose(path, each, say), threads, parallel)

    return together([load], stop)[0]


def open_streams(
    sources: Sequence[str | FrameSource],
    sinks: Sequence[Sequence[str | FrameSink]],
    overlay: Callable[[], Overlay],
    loop: bool = False,
    stop: Callable[[], bool] = lambda: False,
    about: Sequence[About] = (),
    stride: int = 1,
) -> list[Stream]:
    """Open sources, all at once, and then each one's sinks; when one fails, all are closed.

    Args:
        sources: Texts, or what is open already.
        sinks: Those of each source, likewise.
        overlay: Makes what the sinks of one stream paint with.
        loop: Whether files start again at their end.
        stop: See `together`.
        about: What pages tell of each stream.
        stride: Of a film every so manieth frame comes: sinks hear of a rate as much lower.
    """

    def opener(source: str | FrameSource) -> Callable[[], FrameSource]:
        return lambda: open_source(source, loop=loop) if isinstance(source, str) else source

    with ExitStack() as undo:
        streams = []
        opened = together([opener(source) for source in sources], stop)
        for source in opened:
            undo.callback(source.close)
        facts = about or [About()] * len(opened)
        for source, texts, fact in zip(opened, sinks, facts, strict=True):
            stats, painter, ready = StreamStats(), overlay(), []
            info = source.info if source.info.live else replace(source.info, fps=source.info.fps / stride)
            for text in texts:
                sink = open_sink(text, painter, info, stats.snapshot, fact) if isinstance(text, str) else text
                undo.callback(sink.close, False)
                ready.append(sink)
            streams.append(Stream(source, ready, stats))
        undo.pop_all()
        return streams


def open_collector(
    folder: Path, bounds: Bounds, session: InferenceSession, names: Sequence[str], streams: Sequence[Stream]
) -> Collector:
    """Open the folder that frames are collected in.

    Args:
        folder: `check_folder` has passed it.
        bounds: How much it may hold.
        session: The model.
        names: What each stream is called, without credentials; one without a name is called by its position.
        streams: The streams.

    Raises:
        UsageError: Another process is at work in it, or its index is not one of ours.
        OSError: It cannot be made or read.
    """
    called = [name or f"stream {index}" for index, name in enumerate(names)]
    live = [stream.source.info.live for stream in streams]
    return Collector(folder, bounds, session.spec, session.build, called, live)
