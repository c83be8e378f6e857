"""Pictures that tell their number, and a source and a sink that do as the test says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from deploy.frames import Frame, VideoInfo


def picture(index: int, size_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A picture that tells its number: one third each of blue, green and red, and a grey of the number below."""
    image = np.zeros((*size_hw, 3), np.uint8)
    third = size_hw[1] // 3
    for channel in range(3):
        image[:, channel * third : (channel + 1) * third, channel] = 200
    image[size_hw[0] // 2 :] = 8 * (index % 30)
    return image


def number_of(image: np.ndarray) -> int:
    """Read the number back, also out of a lossy film."""
    return round(float(image[3 * image.shape[0] // 4 :].mean()) / 8)


def read_film(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        ok, frame = capture.read()
        if not ok:
            capture.release()
            return frames
        frames.append(frame)


class ListSource:
    """Frames out of a list; `before` is called with each index and may wait or raise."""

    def __init__(
        self,
        count: int,
        live: bool = False,
        before: Callable[[int], None] = lambda index: None,
        size_hw: tuple[int, int] = (48, 64),
    ) -> None:
        self.info = VideoInfo((size_hw[1], size_hw[0]), 25.0, None if live else count, live)
        self._count, self._before, self._size_hw = count, before, size_hw
        self.closed = 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._count):
            self._before(index)
            yield Frame(picture(index % 30, self._size_hw), index, time.monotonic_ns())

    def close(self) -> None:
        self.closed += 1


class ListSink:
    """Keeps what it gets."""

    def __init__(self, before: Callable[[int], None] = lambda index: None) -> None:
        self.frames: list[Frame] = []
        self.maps: list[np.ndarray] = []
        self.complete: list[bool] = []
        self._before = before

    def write(self, frame: Frame, class_map: np.ndarray) -> None:
        self._before(frame.index)
        self.frames.append(frame)
        self.maps.append(class_map.copy())

    def close(self, complete: bool) -> None:
        self.complete.append(complete)
