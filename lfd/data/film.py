"""Films through OpenCV's FFmpeg: from the first frame to the last, in order.

Never by seeking: in H.264 and its like a seek decodes from the key frame before, and lands beside the frame asked for
where the container only estimates its times.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from lfd.data.base import MAX_PIXELS
from lfd.data.mp4 import edited_ms
from lfd.errors import DataError
from lfd.preprocess import Image

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
"""What is taken for a film in a folder; a file that is named itself may have any."""


class FilmInfo(NamedTuple):
    """What a film holds.

    Attributes:
        frames: How many can be decoded.
        size_hw: Height and width of the first, px.
    """

    frames: int
    size_hw: tuple[int, int]


def silence_ffmpeg() -> None:
    """Keep FFmpeg from writing to stderr: our errors say it in one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def promised_frames(path: Path, declared: int, fps: float) -> int:
    """Return how many frames a film says that it shows: a trimmed one may hold more, which no player shows.

    Args:
        path: The film.
        declared: How many its index lists; 0 where it does not say.
        fps: Its mean rate; 0 likewise.
    """
    played_ms = edited_ms(path) if declared and fps else None
    return declared if played_ms is None else min(declared, round(played_ms * fps / 1e3))


def ends_early(frames: int, declared: int, fps: float, position_ms: float) -> bool:
    """Tell a film that was cut from one whose header only estimates the number of frames.

    FFmpeg ends both without an error. Containers without a count give duration x mean rate, which is wrong for a film
    of changing rate; so that both the count and the clock must fall short.

    Args:
        frames: How many were decoded.
        declared: How many it says that it shows, see `promised_frames`; 0 where it does not.
        fps: Its mean rate; 0 where it does not say.
        position_ms: Time of the last frame.
    """
    if not declared or not fps:
        return False
    duration_ms = 1e3 * declared / fps
    return frames < 0.95 * declared - 1 and position_ms < 0.95 * duration_ms - 2e3 / fps


def measure(path: Path) -> FilmInfo:
    """Count a film's frames by decoding them: headers estimate, and a film may have been cut.

    Raises:
        DataError: It is no film that can be decoded, has no frame, was cut, or is of more than MAX_PIXELS.
    """
    capture = _open(path)
    try:
        ok, first = capture.read()
        if not ok:
            raise DataError(f"{path}: a film without a frame that can be decoded; replace or remove it")
        height, width = first.shape[:2]
        if height * width > MAX_PIXELS:
            raise DataError(f"{path}: frames of {width}x{height} pixels; at most {MAX_PIXELS} are read")
        fps = capture.get(cv2.CAP_PROP_FPS)
        fps = fps if 0 < fps < 1e4 else 0.0
        declared = promised_frames(path, max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))), fps)
        frames, position_ms = 1, 0.0
        while capture.grab():
            frames += 1
            position_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
    finally:
        capture.release()
    if ends_early(frames, declared, fps, position_ms):
        raise DataError(
            f"{path}: ends after frame {frames} of {declared}: it was cut or is damaged. "
            "Fix: copy it again, or remove it"
        )
    return FilmInfo(frames, (height, width))


def read(path: Path, wanted: Sequence[int]) -> Iterator[Image]:
    """Yield some frames of a film, (H, W, 3) BGR uint8, decoding it once.

    Args:
        path: The film.
        wanted: Numbers from 0, ascending.

    Raises:
        DataError: It cannot be decoded, or ends before the last of them.
    """
    capture = _open(path)
    try:
        position = 0
        for number in wanted:
            while position < number and capture.grab():
                position += 1
            ok, image = capture.read()
            if not ok:
                raise DataError(f"{path}: ends after frame {position}; it had more when it was opened")
            position += 1
            yield np.asarray(image, np.uint8)
    finally:
        capture.release()


def _open(path: Path) -> cv2.VideoCapture:
    silence_ffmpeg()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise DataError(
            f"{path}: not a film that can be decoded ({path.stat().st_size} bytes); "
            "expected a complete file such as .mp4, .webm, .avi"
        )
    return capture
