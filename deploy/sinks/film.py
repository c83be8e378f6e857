"""The overlay as a film, or as one film after another."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from pathlib import Path
from typing import Protocol

import cv2

from deploy.frames import Frame, State, StreamStatus, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks.aside import unwritable
from deploy.sinks.ffmpeg import FfmpegEncoder
from deploy.sinks.opencv import OpenCvEncoder
from deploy.sinks.options import CODECS
from deploy.sinks.pace import GAP_S, Pace
from lfd.errors import SinkError
from lfd.preprocess import Image, fit_frame
from lfd.spec import Preprocess

DEFAULT_FPS = 25.0
"""Of the film when the source does not know its own rate, as a folder of pictures does not."""
MIN_FREE_BYTES = 16 << 20
CHECK_FRAMES = 25


class Encoder(Protocol):
    """Writes one file."""

    def append(self, picture: Image) -> None:
        """Write one picture; raises SinkError."""
        ...

    def finish(self) -> None:
        """Complete the file; raises SinkError."""
        ...

    def abort(self) -> None:
        """End, whatever it was at; raises nothing. May be called after the others."""
        ...


class FilmSink:
    """A film of the overlay, written aside and renamed once it has been read back.

    A live source's film keeps the pace of the clock: dropped frames are filled with the one before, an outage with
    the last picture marked as stale, up to GAP_S; what is longer is shorter in the film. When a live source comes back
    with another frame size, the film goes on in the next segment, or else letterboxed at its own size.

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
        self._file: _File | None = None
        self._last: Image | None = None
        self._fitted_to: set[tuple[int, int]] = set()

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
        size_wh = (picture.shape[1], picture.shape[0])
        file = self._file
        if self._segmented and file is not None and (file.frames >= self._per_segment or size_wh != file.size_wh):
            self._finish()
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

    def _open(self, size_wh: tuple[int, int]) -> _File:
        path = self._path
        if self._segmented:
            self._numbered += 1
            path = path.with_name(f"{path.stem}-{self._numbered:05d}{path.suffix}")
        aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        # FFmpeg drops the last row or column of an odd size in silence: `_File` adds one instead.
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
        return _File(path, aside, encoder, size_wh)

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        file.close(True)
        if self._keep:
            self._segments.append(file.path)
            if len(self._segments) > self._keep:
                self._segments.popleft().unlink(missing_ok=True)

    def close(self, complete: bool) -> None:
        """Finish the film and give it its name; remove it when it is not complete. Finished segments stay.

        Raises:
            SinkError: What was written cannot be read back.
        """
        if complete:
            self._finish()
        elif self._file is not None:
            file, self._file = self._file, None
            file.close(False)


class _File:
    """A film while it is written.

    Attributes:
        path: Its final name.
        size_wh: Of its pictures; odd sizes are made even by doubling the last row or column.
        frames: Written so far.
    """

    def __init__(self, path: Path, aside: Path, encoder: Encoder, size_wh: tuple[int, int]) -> None:
        self.path, self.size_wh, self.frames = path, size_wh, 0
        self._aside, self._encoder = aside, encoder

    def append(self, picture: Image) -> None:
        bottom, right = picture.shape[0] % 2, picture.shape[1] % 2
        if bottom or right:
            picture = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
        self._encoder.append(picture)
        self.frames += 1
        if self.frames % CHECK_FRAMES == 0:
            self._check_disk()

    def _check_disk(self) -> None:
        try:
            self._aside.stat()
            free = shutil.disk_usage(self._aside.parent).free
        except OSError as error:
            raise SinkError(f"{self.path}: was removed while it was written ({error.strerror})") from error
        if free < MIN_FREE_BYTES:
            raise SinkError(
                f"{self.path}: only {free >> 20} MiB are free on that disk after {self.frames} frames; "
                f"a film stops at {MIN_FREE_BYTES >> 20} MiB. Fix: free space, or write elsewhere"
            )

    def close(self, complete: bool) -> None:
        try:
            if complete:
                self._encoder.finish()
                self._read_back()
                with self._aside.open("rb") as file:
                    os.fsync(file.fileno())
                self._aside.replace(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            self._encoder.abort()
            self._aside.unlink(missing_ok=True)

    def _read_back(self) -> None:
        """Notice a film that the disk had no room for: OpenCV's writer reports nothing."""
        capture = cv2.VideoCapture(str(self._aside), cv2.CAP_FFMPEG)
        try:
            frames = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            last = max(0, self.frames - 1)
            readable = frames >= last and capture.set(cv2.CAP_PROP_POS_FRAMES, last) and capture.read()[0]
        finally:
            capture.release()
        if not readable:
            free = shutil.disk_usage(self._aside.parent).free
            raise SinkError(
                f"{self.path}: of {self.frames} frames written {max(frames, 0)} can be read back; the disk is full "
                f"or its quota used up ({free >> 20} MiB free). Fix: free space, or write elsewhere"
            )
