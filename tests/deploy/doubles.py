"""Pictures that tell their number, and a source and a sink that do as the test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from deploy.frames import Cause, Frame, State, StreamStatus, VideoInfo


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


def lost(cause: Cause = Cause.TIMED_OUT) -> StreamStatus:
    return StreamStatus(State.LOST, time.monotonic_ns(), cause, "no picture for 5 s", retry_in_s=0.5)


def back() -> StreamStatus:
    return StreamStatus(State.LIVE, time.monotonic_ns(), reconnects=1)


class ScriptSource:
    """Gives frames for numbers, statuses as they are, waits for events, and raises exceptions."""

    def __init__(self, script: Iterable[int | StreamStatus | threading.Event | Exception], live: bool = True) -> None:
        self.info = VideoInfo((64, 48), 25.0, None, live)
        self._script = script
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Frame | StreamStatus]:
        for item in self._script:
            if isinstance(item, threading.Event):
                while not (item.is_set() or self.closed.is_set()):
                    time.sleep(0.002)
            elif isinstance(item, Exception):
                raise item
            elif isinstance(item, StreamStatus):
                yield item
            else:
                yield Frame(picture(item % 30), item, time.monotonic_ns())
            if self.closed.is_set():
                return

    def close(self) -> None:
        self.closed.set()


class ListSink:
    """Keeps what it gets."""

    def __init__(self, before: Callable[[int], None] = lambda index: None) -> None:
        self.frames: list[Frame] = []
        self.maps: list[np.ndarray] = []
        self.complete: list[bool] = []
        self.statuses: list[StreamStatus] = []
        self._before = before

    def write(self, frame: Frame, class_map: np.ndarray) -> None:
        self._before(frame.index)
        self.frames.append(frame)
        self.maps.append(class_map.copy())

    def show_status(self, status: StreamStatus) -> None:
        self.statuses.append(status)

    def close(self, complete: bool) -> None:
        self.complete.append(complete)
