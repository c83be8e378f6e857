"""Films by OpenCV's writer, made to say when it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from lfd.errors import SinkError
from lfd.preprocess import Image

FOURCC = {"vp8": "VP80", "mp4v": "mp4v", "mjpg": "MJPG"}
"""The OpenCV wheels write these three; H.264 and HEVC do not open in them."""


class OpenCvEncoder:
    """One film.

    Args:
        path: The film's final name, for messages.
        aside: Where to write.
        codec: A key in FOURCC.
        fps: Pictures a second.
        size_wh: Of the pictures, even numbers.

    Raises:
        SinkError: The folder is not writable, or this OpenCV lacks the codec.
    """

    def __init__(self, path: Path, aside: Path, codec: str, fps: float, size_wh: tuple[int, int]) -> None:
        fourcc = FOURCC[codec]
        with _stderr_to_null():  # it remarks that webm has no tag for VP8, which is right and of no interest
            self._writer = cv2.VideoWriter(str(aside), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), fps, size_wh)
        if not self._writer.isOpened():
            aside.unlink(missing_ok=True)
            reason = "" if os.access(aside.parent, os.W_OK) else f"{aside.parent} is not writable; "
            raise SinkError(
                f"{path}: {reason}this OpenCV ({cv2.__version__}) cannot write {fourcc} in {path.suffix}. "
                "Fix: choose another of .webm, .mp4, .avi"
            )

    def append(self, picture: Image) -> None:
        """Write one picture. It tells nobody when the disk is full: the caller looks at the disk and reads back."""
        self._writer.write(picture)

    def finish(self) -> None:
        """Write what the container wants at its end."""
        self._writer.release()

    def abort(self) -> None:
        """End without caring for what was written."""
        self._writer.release()


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
