"""The overlay as a film: OpenCV's writer, made to say when it fails."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from deploy.frames import Frame, VideoInfo
from deploy.overlay import Overlay
from lfd.errors import SinkError
from lfd.preprocess import Image

CODECS = {".webm": "VP80", ".mp4": "mp4v", ".avi": "MJPG"}
"""Film suffix -> codec. The OpenCV wheels write these three; H.264 and HEVC do not open in them."""
DEFAULT_FPS = 25.0
"""Of the film when the source does not know its own rate, as a folder of pictures does not."""
MIN_FREE_BYTES = 16 << 20
FREE_CHECK_FRAMES = 25


class FilmSink:
    """A film of the overlay, written aside and renamed once it has been read back.

    Args:
        path: Its suffix chooses the codec; see CODECS.
        overlay: Paints the frames.
        info: The source's. A live source's dropped frames are filled with the one before, so that the
            film runs at the camera's pace.
    """

    def __init__(self, path: Path, overlay: Overlay, info: VideoInfo) -> None:
        self._path, self._overlay = path, overlay
        self._aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self._fps = info.fps or DEFAULT_FPS
        self._live = info.live
        self._writer: cv2.VideoWriter | None = None
        self._size_wh = (0, 0)
        self._written = 0
        self._last: tuple[int, Image] | None = None

    def write(self, frame: Frame, class_map: Image) -> None:
        """Append the frame.

        Raises:
            SinkError: The codec does not open, the frame has another size than the film, or the disk is full.
        """
        picture = self._overlay.paint(frame, class_map)
        size_wh = (picture.shape[1], picture.shape[0])
        if self._writer is None:
            self._open(size_wh)
        if size_wh != self._size_wh:
            raise SinkError(
                f"{self._path}: the film has {self._size_wh[0]}x{self._size_wh[1]} pixels, but frame {frame.index} "
                f"{frame.name!r} gives {size_wh[0]}x{size_wh[1]}; a film has one size. Fix: write masks to DIR/ instead"
            )
        if self._live and self._last is not None:
            missed = min(frame.index - self._last[0] - 1, round(self._fps))
            for _ in range(missed):
                self._append(self._last[1])
        self._append(picture)
        self._last = (frame.index, picture)

    def _open(self, size_wh: tuple[int, int]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        codec = CODECS[self._path.suffix.lower()]
        # FFmpeg drops the last row or column of an odd size in silence: `_append` adds one instead.
        even_wh = (size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2)
        with _stderr_to_null():  # it remarks that webm has no tag for VP8, which is right and of no interest
            self._writer = cv2.VideoWriter(
                str(self._aside), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), self._fps, even_wh
            )
        if not self._writer.isOpened():
            reason = "" if os.access(self._path.parent, os.W_OK) else f"{self._path.parent} is not writable; "
            raise SinkError(
                f"{self._path}: {reason}this OpenCV ({cv2.__version__}) cannot write {codec} in {self._path.suffix}. "
                f"Fix: choose another of {', '.join(CODECS)}"
            )
        self._size_wh = size_wh

    def _append(self, picture: Image) -> None:
        assert self._writer is not None  # noqa: S101 - opened by `write`
        if picture.shape[0] % 2 or picture.shape[1] % 2:
            bottom, right = picture.shape[0] % 2, picture.shape[1] % 2
            picture = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
        self._writer.write(picture)  # tells nobody when the disk is full
        self._written += 1
        if self._written % FREE_CHECK_FRAMES == 0:
            free = shutil.disk_usage(self._aside.parent).free
            if free < MIN_FREE_BYTES:
                raise SinkError(
                    f"{self._path}: only {free >> 20} MiB are free on that disk after {self._written} frames; "
                    f"a film stops at {MIN_FREE_BYTES >> 20} MiB. "
                    "Fix: free space, or write elsewhere"
                )

    def close(self, complete: bool) -> None:
        """Finish the film and give it its name; remove it when it is not complete.

        Raises:
            SinkError: What was written cannot be read back.
        """
        writer, self._writer = self._writer, None
        try:
            if writer is None:
                return
            writer.release()
            if complete:
                self._read_back()
                with self._aside.open("rb") as file:
                    os.fsync(file.fileno())
                self._aside.replace(self._path)
        finally:
            self._aside.unlink(missing_ok=True)

    def _read_back(self) -> None:
        """Notice a film that the disk had no room for: the writer reports nothing."""
        capture = cv2.VideoCapture(str(self._aside), cv2.CAP_FFMPEG)
        try:
            frames = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            last = max(0, self._written - 1)
            readable = frames >= last and capture.set(cv2.CAP_PROP_POS_FRAMES, last) and capture.read()[0]
        finally:
            capture.release()
        if not readable:
            free = shutil.disk_usage(self._aside.parent).free
            raise SinkError(
                f"{self._path}: of {self._written} frames written {max(frames, 0)} can be read back; the disk is full "
                f"or its quota used up ({free >> 20} MiB free). Fix: free space, or write elsewhere"
            )


@contextmanager
def _stderr_to_null() -> Iterator[None]:
    """Drop what native code writes to file descriptor 2; where there is none, do nothing."""
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)
