"""The first stage: a thread a stream that takes what its source gives and prepares it for the model."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploy.frames import Frame, FrameSink, FrameSource, State, StreamStatus
from deploy.stats import StreamStats
from lfd.errors import UsageError
from lfd.preprocess import Image, fit_frame
from lfd.spec import Preprocess

READER_NICE = 10

Fitted = tuple[Frame, Image]
"""A frame, and itself at the model's size."""


@dataclass(frozen=True)
class Stream:
    """A source and what is done with it.

    Attributes:
        source: Closed by the run.
        sinks: Written in turn; closed by the run.
        stats: What has happened so far.
    """

    source: FrameSource
    sinks: Sequence[FrameSink] = ()
    stats: StreamStats = field(default_factory=StreamStats)

    def discard(self) -> None:
        """Close what was opened for a run that does not take place."""
        self.source.close()
        for sink in self.sinks:
            sink.close(False)


@dataclass(frozen=True)
class Limits:
    """How much of the sources a run takes.

    Attributes:
        max_frames: Frames shown of each stream after which it ends.
        duration_s: Seconds after which the run ends.
        fps: Most frames a second of each stream that are inferred: of a live source the others are skipped, a file is
            read at that pace.
        stride: Every so manieth frame is inferred, the others are skipped.

    Raises:
        UsageError: A number that means nothing.
    """

    max_frames: int | None = None
    duration_s: float | None = None
    fps: float | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        for name, least in (("max_frames", 1), ("stride", 1), ("duration_s", 0.0), ("fps", 0.0)):
            value = getattr(self, name)
            if value is not None and not (least <= value < math.inf and value > 0):
                raise UsageError(f"{name} {value}; expected {'1 or more' if least else 'a number above 0'}")


class Pace:
    """Lets at most so many frames a second pass, counted over the whole run.

    A frame is due 1 / fps after the one before was due, and passes from half of that time before, so that a camera
    whose frames come a little early or late keeps its rate.
    """

    def __init__(self, fps: float) -> None:
        self._gap_s = 1 / fps
        self._due_s = -math.inf

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the next frame is due, and count it as passed then."""
        wait_s = max(0.0, self._due_s - now_s)
        self._pass(now_s + wait_s)
        return wait_s

    def admits(self, now_s: float) -> bool:
        """Tell whether a frame may pass now, and count it when it may."""
        if now_s < self._due_s - self._gap_s / 2:
            return False
        self._pass(now_s)
        return True

    def _pass(self, now_s: float) -> None:
        # Who was late does not catch up with a burst; who begins is neither early nor late.
        least_s = self._gap_s / 2 if self._due_s > -math.inf else self._gap_s
        self._due_s = max(self._due_s + self._gap_s, now_s + least_s)


def read(
    stream: Stream,
    put: Callable[[Fitted], None],
    put_status: Callable[[StreamStatus], None],
    preprocess: Preprocess,
    limits: Limits,
    stopping: threading.Event,
    gives_way: bool = True,
) -> None:
    """Take a stream's frames until it ends.

    Args:
        stream: The stream.
        put: Takes each frame that is to be inferred.
        put_status: Takes each change of how the stream is.
        preprocess: The model's.
        limits: What is skipped, and at what pace a file is read.
        stopping: Set to end a wait.
        gives_way: Whether a file's frames are read at a lower priority, see `give_way`.

    Raises:
        SourceError: The source was lost for good.
        Stopped: By `put`.
    """
    live, stats = stream.source.info.live, stream.stats
    if gives_way and not live:
        give_way()
    pace = Pace(limits.fps) if limits.fps else None
    most = None if live else limits.max_frames
    items, given, expected = iter(stream.source), 0, 0
    reading, fitting = stats.stages["read"], stats.stages["fit"]
    while most is None or stats.captured < most:
        if pace and not live and stopping.wait(pace.wait_s(time.monotonic())):
            return
        begin = time.perf_counter()
        item = next(items, None)
        if item is None:
            break
        if isinstance(item, StreamStatus):
            put_status(item)
            continue
        read_at = time.perf_counter()
        for _ in range(item.index - expected):  # the source has passed over them: for newer ones, or as unreadable
            if live:
                stats.capture()
                stats.drop(1)
            else:
                stats.skip()
        expected = item.index + 1
        given += 1
        if (given - 1) % limits.stride or (pace and live and not pace.admits(item.captured_ns / 1e9)):
            stats.skip()
            continue
        stats.capture()
        fitted = fit_frame(item.image, preprocess)
        reading.add((read_at - begin) * 1e3)
        fitting.add((time.perf_counter() - read_at) * 1e3)
        put((item, fitted))
    put_status(StreamStatus(State.ENDED, time.monotonic_ns()))


def give_way() -> None:
    """Lower this thread's priority, where the system has one for each thread (Linux).

    A file's reader has a whole inference to prepare the next frame in, and the model's threads leave gaps; at equal
    priority it pushes one of them aside, and all others wait for that one. Two inferences with a thread
    each do not wait for each other, and only lack frames when their reader comes last.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Under `nice -n 15` it has given way by more than this already, and only root may take that back.
        os.setpriority(os.PRIO_PROCESS, thread, max(READER_NICE, os.getpriority(os.PRIO_PROCESS, thread)))
