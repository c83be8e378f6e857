"""The second stage: runs the model, for all streams, and what is done with its raw results.

Several threads may do it, each with frames of its own; results go on in the order in which the frames were taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.collect import Collector
from deploy.exchange import Ended, Exchange
from deploy.frames import Frame, VideoInfo
from deploy.reader import Fitted, Stream
from deploy.session import InferenceSession, as_class_map
from deploy.sinks.film import DEFAULT_FPS
from deploy.smoothing import Smoothing, StreamSmoother
from lfd.errors import ModelError
from lfd.preprocess import Image

Raw = tuple[NDArray[Any], list[Image], float]
"""What the model gave for some frames, their class maps unless they are smoothed, and milliseconds of the inference."""
Found = tuple[Frame, Image, float]
"""A frame, its class map at the model's size, and milliseconds of the inference."""


class Inference:
    """Runs a model on what the readers put, until all of it has been taken; `run` is for several threads at once.

    Args:
        session: The model.
        streams: By position, as in the exchange.
        exchange: Where frames come from and results go to.
        smoothing: How results are steadied; None leaves them as they are.
        collector: Looks at every result, as it is before that.

    Raises:
        ModelError: The model takes batches of several frames only.
        UsageError: The smoothing needs another output than the model's.
    """

    def __init__(
        self,
        session: InferenceSession,
        streams: Sequence[Stream],
        exchange: Exchange[Fitted, Found],
        smoothing: Smoothing | None = None,
        collector: Collector | None = None,
    ) -> None:
        if session.batch not in (None, 1):
            raise ModelError(
                f"the model takes {session.batch} frames at a time, and frames come one by one. Fix: export it with "
                "batch 1, or with an open batch"
            )
        self._session, self._streams, self._exchange, self._collector = session, streams, exchange, collector
        self._smoothers = [StreamSmoother(smoothing, session.spec) for _ in streams] if smoothing else []
        self._taking, self._giving = threading.Lock(), threading.Lock()
        self._taken = self._given = 0
        self._found: dict[int, tuple[Sequence[tuple[int, Fitted]], Raw]] = {}
        self._at_work: set[int] = set()
        for stream in streams:
            if smoothing is not None:
                stream.stats.add_stage("smooth")
            if collector is not None:
                stream.stats.add_stage("score")

    @property
    def busy(self) -> bool:
        """Whether a thread is at work."""
        return bool(self._at_work)

    def run(self) -> None:
        """Work until there is nothing more to come.

        Raises:
            ModelError: The runtime failed, or a class comes out that the spec does not name.
            Stopped: The run was stopped.
        """
        me = threading.get_ident()
        self._at_work.add(me)
        try:
            while True:
                self._one()
        except Ended:
            pass
        finally:
            self._at_work.discard(me)

    def _one(self) -> None:
        """Infer what can be taken; give it, and what was found of later frames meanwhile, when its turn has come."""
        with self._taking:  # only one may wait there
            taken = self._exchange.take(self._session.batch)
            number = self._taken
            self._taken += 1
        found = self._infer(taken)
        with self._giving:
            self._found[number] = taken, found
            while self._given in self._found:
                frames, result = self._found.pop(self._given)
                self._exchange.give(self._finish(frames, *result))
                self._given += 1

    def _infer(self, taken: Sequence[tuple[int, Fitted]]) -> Raw:
        begin = time.perf_counter()
        images = [fitted for _, (_, fitted) in taken]
        raw = self._session.run(images[0][None] if len(images) == 1 else np.stack(images))
        # Copied, since the session's array lives until this thread's next run only; raw, where another thread may come
        # to the turn of it.
        maps = [] if self._smoothers else [as_class_map(found, self._session.spec).copy() for found in raw]
        if self._session.parallel > 1 and (self._smoothers or self._collector):
            raw = raw.copy()
        return raw, maps, (time.perf_counter() - begin) * 1e3

    def _finish(
        self, taken: Sequence[tuple[int, Fitted]], raw: NDArray[Any], maps: Sequence[Image], infer_ms: float
    ) -> list[tuple[int, Found]]:
        given = []
        for at, (index, (frame, _)) in enumerate(taken):
            self._streams[index].stats.stages["infer"].add(infer_ms)
            at_s = stream_seconds(frame, self._streams[index].source.info)
            classes = self._smooth(index, frame, raw[at], at_s) if self._smoothers else maps[at]
            if self._collector is not None:
                self._score(self._collector, index, frame, raw[at], at_s)
            given.append((index, (frame, classes, infer_ms)))
        return given

    def _smooth(self, index: int, frame: Frame, found: NDArray[Any], at_s: float) -> Image:
        stats = self._streams[index].stats
        begin = time.perf_counter()
        classes = self._smoothers[index].smooth(found, at_s, (frame.image.shape, stats.reconnects))
        stats.stages["smooth"].add((time.perf_counter() - begin) * 1e3)
        return classes

    def _score(self, collector: Collector, index: int, frame: Frame, found: NDArray[Any], at_s: float) -> None:
        begin = time.perf_counter()
        collector.see(index, frame, found, at_s)
        self._streams[index].stats.stages["score"].add((time.perf_counter() - begin) * 1e3)


def stream_seconds(frame: Frame, info: VideoInfo) -> float:
    """Return when a frame was taken, seconds of its stream's own: of a file its position, not when it was read."""
    return frame.captured_ns / 1e9 if info.live else frame.index / (info.fps or DEFAULT_FPS)
