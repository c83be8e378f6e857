"""OpenCV's reader of films and cameras, kept quiet, and closed from any thread."""

from __future__ import annotations

import math
import os
import threading

import cv2
import numpy as np

from lfd.data.film import silence_ffmpeg
from lfd.preprocess import Image

CAMERA_TIMEOUT_S = 5


def silence_opencv() -> None:
    """Keep OpenCV and FFmpeg from writing to stderr: a source's errors say it in one line."""
    silence_ffmpeg()
    # V4L2 knows no READ_TIMEOUT property; by itself it waits 10 s for a camera that has gone silent.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(CAMERA_TIMEOUT_S))
    if hasattr(cv2, "utils") and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Capture:
    """A `cv2.VideoCapture` that another thread may close while a read is under way.

    Releasing it during a read crashes the process, so that the reader releases it in that case.
    """

    def __init__(self, target: str | int, api: int, params: list[int]) -> None:
        silence_opencv()
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
        value = float(self._cap.get(prop))
        return value if math.isfinite(value) and value > 0 else 0.0

    def read(self) -> Image | None:
        """Return the next picture, or None at the end, after a failure or after `close`."""
        with self._lock:
            try:
                ok, image = self._cap.read() if not self._closed else (False, None)
            except cv2.error:
                ok, image = False, None
            if self._closed:
                self._cap.release()
        return np.asarray(image, dtype=np.uint8) if ok and image is not None else None

    def close(self) -> None:
        self._closed = True
        if self._lock.acquire(timeout=0.2):
            try:
                self._cap.release()
            finally:
                self._lock.release()
