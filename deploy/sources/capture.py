"""OpenCV's reader of films, streams and cameras, kept quiet, and closed from any thread."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import cv2
import numpy as np

from lfd.data.film import silence_ffmpeg
from lfd.preprocess import Image

CAMERA_TIMEOUT_S = 5
_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


def silence_opencv() -> None:
    """Keep OpenCV and FFmpeg from writing to stderr: a source's errors say it in one line, without passwords."""
    silence_ffmpeg()
    # V4L2 knows no READ_TIMEOUT property; by itself it waits 10 s for a camera that has gone silent.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(CAMERA_TIMEOUT_S))
    if hasattr(cv2, "utils") and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Capture:
    """A `cv2.VideoCapture` that another thread may close while a read is under way.

    Releasing it during a read crashes the process, so that the reader releases it in that case.

    Args:
        target: File, URL, pipeline or device.
        api: One of OpenCV's `CAP_` back ends.
        params: Property, value, ... for opening.
        ffmpeg_options: FFmpeg's own, `KEY;VALUE|KEY;VALUE`, for streams; what the environment has in
            OPENCV_FFMPEG_CAPTURE_OPTIONS comes after them and wins.
    """

    def __init__(self, target: str, api: int, params: list[int], ffmpeg_options: str = "") -> None:
        silence_opencv()
        with _environment.holding(ffmpeg_options) if ffmpeg_options else nullcontext():
            self._cap = cv2.VideoCapture(target, api, params)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def is_opened(self) -> bool:
        return bool(self._cap.isOpened())

    def get(self, prop: int) -> float:
        """Return a property, 0 when it is not known."""
        with self._lock:
            value = float(self._cap.get(prop))
        return value if math.isfinite(value) and value > 0 else 0.0

    def set(self, prop: int, value: float) -> None:
        """Ask for a property; `get` tells what came of it."""
        self._cap.set(prop, value)

    def read(self) -> Image | None:
        """Return the next picture, or None at the end, after a failure or after `close`."""
        return self.retrieve() if self.grab() else None

    def grab(self) -> bool:
        """Wait for the next picture and decode it; return whether there is one."""
        with self._reading():
            try:
                return not self._closed and bool(self._cap.grab())
            except cv2.error:
                return False

    def retrieve(self) -> Image | None:
        """Return the picture that was grabbed, (H, W, 3) BGR uint8."""
        with self._reading():
            try:
                ok, image = self._cap.retrieve() if not self._closed else (False, None)
            except cv2.error:
                ok, image = False, None
        return np.asarray(image, dtype=np.uint8) if ok and image is not None and image.size else None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            yield
            if self._closed:
                self._cap.release()

    def close(self) -> None:
        self._closed = True
        if self._lock.acquire(timeout=0.2):
            try:
                self._cap.release()
            finally:
                self._lock.release()


class _Environment:
    """FFmpeg's options, which OpenCV takes from a variable of the whole process.

    Streams of the same options open at the same time, so that one dead camera does not hold up the others; of different
    ones one waits for the other.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._value = ""
        self._own: str | None = None

    @contextmanager
    def holding(self, options: str) -> Iterator[None]:
        """Set the variable while OpenCV opens."""
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0 or self._value == options)
            if self._users == 0:
                self._own, self._value = os.environ.get(_VARIABLE), options
                os.environ[_VARIABLE] = f"{options}|{self._own}" if self._own else options
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if self._users == 0:
                    os.environ.pop(_VARIABLE)
                    if self._own is not None:
                        os.environ[_VARIABLE] = self._own
                self._changed.notify_all()


_environment = _Environment()
