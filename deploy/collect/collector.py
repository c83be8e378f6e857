"""From results to files: the best frame of each slot of time, written by a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from deploy.artifact import BuildInfo
from deploy.collect.folder import Bounds, Folder
from deploy.collect.judge import Judge, Sight
from deploy.collect.record import Kept
from deploy.frames import Frame
from deploy.reader import give_way
from lfd.spec import ModelSpec

HOLD_S = 60.0
"""A slot's best frame so far is written after so long of its stream's time, when the next result comes, that a killed
process does not lose more."""
WAITING = 4
"""Frames that may wait for the disk, beside one of each stream."""
PATIENCE_S = 10.0
"""How long a disk is waited for that does not answer."""


@dataclass(frozen=True)
class Collected:
    """What there is in the folder at the end of a run, of earlier runs too.

    Attributes:
        folder: The folder.
        kept: Frames in it.
        total_bytes: Of their pictures.
        missed: Frames that were to be kept while the disk was behind.
        failure: Why collecting ended before the run did, or did nothing; None otherwise.
    """

    folder: str
    kept: int
    total_bytes: int
    missed: int
    failure: str | None


@dataclass
class _Candidate:
    """The best frame of a slot so far, in memory."""

    sight: Sight
    at_s: float
    slot: int
    held_since_s: float


class Collector:
    """Keeps frames of a run's streams. `see` is called by one thread at a time, the rest by any.

    A disk that is full or refuses ends the collecting, not the run: `failure` says why, and what was kept stays.

    Args:
        path: The folder; see `deploy.collect.folder.Folder`.
        bounds: How much it may hold.
        spec: The model's.
        build: Likewise.
        sources: What each stream is called, without credentials.
        live: For each stream whether its source is.

    Raises:
        UsageError: The folder cannot be taken.
        OSError: It cannot be made or read.
    """

    def __init__(
        self,
        path: Path,
        bounds: Bounds,
        spec: ModelSpec,
        build: BuildInfo,
        sources: Sequence[str],
        live: Sequence[bool],
    ) -> None:
        self._spec, self._build, self._sources, self._live = spec, build, sources, live
        self._judges = [Judge(spec) for _ in sources]
        self._best: list[_Candidate | None] = [None] * len(sources)
        # Slots of live streams end at the same moment: there is room for one of each at once.
        self._queue: queue.Queue[tuple[int, _Candidate] | None] = queue.Queue(WAITING + len(sources))
        self._missed = 0
        self._closed = False
        self.failure: str | None = None
        self._error: Exception | None = None
        self._folder = Folder(path.expanduser(), bounds)
        self._thread = threading.Thread(target=self._work, name="lfd-collect", daemon=True)
        self._thread.start()

    def see(self, index: int, frame: Frame, found: NDArray[Any], at_s: float) -> None:
        """Take in a result.

        Args:
            index: Position of the stream.
            frame: The frame.
            found: As the session gives it for one picture; not kept.
            at_s: When the frame was taken, seconds of the stream's own.
        """
        if not self._closed:  # an inference that was left behind
            self._offer(index, self._judges[index].see(frame, found, at_s))

    def _offer(self, index: int, sight: Sight | None) -> None:
        if sight is None or self.failure is not None:
            return
        # Wall-clock time outlives the run: slots go on where the last run ended.
        at_s = round(_unix_s(sight.frame) if self._live[index] else sight.at_s, 3)
        best, slot = self._best[index], self._folder.slot(at_s)
        if best is not None and (slot != best.slot or abs(at_s - best.held_since_s) >= HOLD_S):
            self._put(index, best)
            best = self._best[index] = None
        if best is None:
            if self._folder.wants(self._sources[index], at_s, sight.score):
                self._best[index] = _Candidate(sight, at_s, slot, at_s)
        elif sight.score > best.sight.score:
            best.sight, best.at_s = sight, at_s

    def _put(self, index: int, best: _Candidate) -> None:
        """Hand a frame to the disk. A live stream does not wait for it; a file does, and so does the end."""
        live = self._live[index] and not self._closed
        try:
            self._queue.put((index, best), timeout=0.0 if live else PATIENCE_S)
        except queue.Full:
            self._missed += 1
            if not live:  # it has been waited for; the next frame would wait as long again
                self.failure = f"{self._folder.path}: the disk does not answer; nothing more is collected"

    def _work(self) -> None:
        give_way()  # a picture of 720p takes 20 ms to encode
        while (item := self._queue.get()) is not None:
            if self.failure is not None:
                continue
            try:
                self._write(*item)
            except OSError as error:
                where = error.filename or self._folder.path
                self.failure = f"{where}: cannot be written ({error.strerror or error}); nothing more is collected"
            except Exception as error:
                self._error, self.failure = error, f"nothing more is collected ({error})"

    def _write(self, index: int, best: _Candidate) -> None:
        source, sight = self._sources[index], best.sight
        if not self._folder.wants(source, best.at_s, sight.score):
            return
        ok, data = cv2.imencode(".png", sight.frame.image)
        if not ok:
            raise OSError(f"OpenCV cannot encode a picture of {sight.frame.image.shape}")
        picture = data.tobytes()
        moment_ms = round(1e3 * (best.at_s if self._live[index] else _unix_s(sight.frame)))
        while not self._folder.free_name(_name(moment_ms, index)):
            moment_ms += 1
        kept = Kept(
            file=_name(moment_ms, index),
            time=_utc(moment_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            source=source,
            at_s=best.at_s,
            index=sight.frame.index,
            why=sight.why,
            score=sight.score,
            unsure=None if sight.unsure is None else round(sight.unsure, 6),
            unsure_by=self._judges[index].measure,
            drift=round(sight.drift, 6),
            model=self._spec.model,
            onnx_sha256=self._build.onnx_sha256,
            size_hw=(sight.frame.image.shape[0], sight.frame.image.shape[1]),
            bytes=len(picture),
        )
        self._folder.add(kept, picture)

    @property
    def collected(self) -> Collected:
        """What there is in the folder now."""
        kept = self._folder.kept
        return Collected(str(self._folder.path), len(kept), sum(k.bytes for k in kept), self._missed, self.failure)

    def close(self) -> None:
        """Write what is held and give the folder back. May be called twice.

        What an inference that was left behind still gives is not taken.

        Raises:
            Exception: A defect of ours that ended the writing.
        """
        if self._closed:
            return
        self._closed = True
        for index, judge in enumerate(self._judges):
            self._offer(index, judge.last())
            if (best := self._best[index]) is not None and self.failure is None:
                self._put(index, best)
        with suppress(queue.Full):
            self._queue.put(None, timeout=PATIENCE_S)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self.failure = self.failure or f"{self._folder.path}: the disk does not answer; its last frames may be lost"
        if self._folder.too_large and not self._folder.kept:
            what = f"nothing is collected, as one picture takes {self._folder.too_large / 1e6:.2g} MB"
            self.failure = self.failure or f"{self._folder.path}: {what}. Fix: allow more megabytes"
        self._folder.close()
        if self._error is not None:
            raise self._error


def _unix_s(frame: Frame) -> float:
    return (time.time_ns() - time.monotonic_ns() + frame.captured_ns) / 1e9


def _utc(moment_ms: int) -> datetime:
    return datetime.fromtimestamp(moment_ms / 1e3, timezone.utc)


def _name(moment_ms: int, stream: int) -> str:
    moment = _utc(moment_ms)
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z-{stream}.png"
