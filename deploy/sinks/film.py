"""The overlay as a film, or as one film after another."""

from __future__ import annotations

import re
import time
from collections import deque
from functools import partial
from pathlib import Path

from deploy.frames import Frame, State, StreamStatus, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks.aside import aside_of, unwritable
from deploy.sinks.background import Background
from deploy.sinks.ffmpeg import FfmpegEncoder
from deploy.sinks.opencv import OpenCvEncoder
from deploy.sinks.options import CODECS
from deploy.sinks.pace import GAP_S, Pace
from deploy.sinks.recording import Encoder, Recording
from lfd.errors import SinkError
from lfd.files import clear_partial
from lfd.preprocess import Image, fit_frame
from lfd.spec import Preprocess

DEFAULT_FPS = 25.0
"""Of the film when the source does not know its own rate, as a folder of pictures does not."""


class FilmSink:
    """A film of the overlay, written aside and renamed once it has been read back.

    A live source's film keeps the pace of the clock: dropped frames are filled with the one before, an outage with
    the last picture marked as stale, up to GAP_S; what is longer is shorter in the film. When a live source comes back
    with another frame size, the film goes on in the next segment, or else letterboxed at its own size.

    After a failure what a live source gave stays, as far as it plays. A full segment is finished in the background, one
    at a time and in order, since that takes up to a second.

    Args:
        path: Its suffix chooses the container and the default codec; see CODECS.
        overlay: Paints the frames.
        info: The source's.
        codec: One of CODECS; "" for the suffix's first.
        crf: Of h264.
        preset: Of h264.
        segment: Seconds after which the film goes on in the next file, `path` with a number; 0 writes one.
        keep: Only the latest so many of its own segments stay; 0 keeps all.
    """

    def __init__(
        self,
        path: Path,
        overlay: Overlay,
        info: VideoInfo,
        codec: str = "",
        crf: int = 23,
        preset: str = "veryfast",
        segment: int = 0,
        keep: int = 0,
    ) -> None:
        self._path, self._overlay = path, overlay
        self._codec = codec or CODECS[path.suffix.lower()][0]
        self._crf, self._preset = crf, preset
        self._fps = info.fps or DEFAULT_FPS
        self._live = info.live
        self._pace = Pace(self._fps)
        self._per_segment = max(1, round(segment * self._fps))
        self._segmented, self._keep = segment > 0, keep
        self._segments: deque[Path] = deque()
        self._numbered = 0
        self._finishing = Background()
        self._file: Recording | None = None
        self._last: Image | None = None
        self._fitted_to: set[tuple[int, int]] = set()
        clear_partial(path.parent, rf"{re.escape(path.stem)}(?:-\d{{5,}})?\.", re.escape(path.suffix))

    @property
    def notes(self) -> list[str]:
        """What the film is not as one would expect, a line each."""
        fitted = [f"{self._path}: frames of {w}x{h} pixels are fitted into the film's" for w, h in self._fitted_to]
        gaps = self._pace.shortened
        return [*fitted, *([f"{self._path}: {gaps} gaps are shortened to {GAP_S:g} s"] if gaps else [])]

    def write(self, frame: Frame, class_map: Image) -> None:
        """Append the frame.

        Raises:
            SinkError: The codec does not open, the frame has another size than the film, or the disk is full.
        """
        picture = self._overlay.paint(frame, class_map)
        if not self._live:
            self._append(picture, f"frame {frame.index} {frame.name!r}")
            return
        self._fill(frame.captured_ns)
        if self._pace.take(frame.captured_ns):
            self._append(picture, f"frame {frame.index}")
        self._last = picture

    def show_status(self, status: StreamStatus) -> None:
        """Keep a live film's pace through an outage, with the last picture marked as stale.

        Raises:
            SinkError: As in `write`.
        """
        if status.state is not State.LOST or self._last is None:
            return
        stale = self._overlay.stale(status)
        self._last = self._last if stale is None else stale
        self._fill(time.monotonic_ns())

    def _fill(self, now_ns: int) -> None:
        if self._last is not None:
            for _ in range(self._pace.fill(now_ns)):
                self._append(self._last, "a copy")

    def _append(self, picture: Image, what: str) -> None:
        self._finishing.check()
        size_wh = (picture.shape[1], picture.shape[0])
        file = self._file
        if self._segmented and file is not None and (file.frames >= self._per_segment or size_wh != file.size_wh):
            self._finishing.start(partial(self._finish, file))
            self._file = None
        if self._file is None:
            self._file = self._open(size_wh)
        film_wh = self._file.size_wh
        if size_wh != film_wh:
            if not self._live:
                raise SinkError(
                    f"{self._path}: the film has {film_wh[0]}x{film_wh[1]} pixels, but {what} gives "
                    f"{size_wh[0]}x{size_wh[1]}; a film has one size. Fix: write masks to DIR/ instead"
                )
            self._fitted_to.add(size_wh)
            picture = fit_frame(picture, Preprocess((film_wh[1], film_wh[0]), resize="letterbox"))
        self._file.append(picture)

    def _open(self, size_wh: tuple[int, int]) -> Recording:
        path = self._path
        if self._segmented:
            self._numbered += 1
            path = path.with_name(f"{path.stem}-{self._numbered:05d}{path.suffix}")
        aside = aside_of(path)
        # FFmpeg drops the last row or column of an odd size in silence: `Recording` adds one instead.
        even_wh = (size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        encoder: Encoder
        if self._codec == "h264":
            encoder = FfmpegEncoder(path, aside, self._fps, even_wh, self._crf, self._preset)
        else:
            encoder = OpenCvEncoder(path, aside, self._codec, self._fps, even_wh)
        return Recording(path, aside, encoder, size_wh)

    def _finish(self, file: Recording) -> None:
        file.finish()
        if self._keep:
            self._segments.append(file.path)
            if len(self._segments) > self._keep:
                self._segments.popleft().unlink(missing_ok=True)

    def close(self, complete: bool) -> None:
        """Finish the film and give it its name; one of a file that is not complete is removed. Full segments stay.

        Raises:
            SinkError: What was written cannot be read back.
        """
        file, self._file = self._file, None
        try:
            self._finishing.wait()
        finally:
            if file is not None:
                if complete:
                    self._finish(file)
                elif self._live:
                    file.save()
                else:
                    file.discard()
