"""The newest pictures of a live capture: a stream through FFmpeg or GStreamer, or a camera."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import cv2

from deploy.frames import Frame, VideoInfo
from deploy.sources.address import Options
from deploy.sources.backlog import Backlog
from deploy.sources.capture import Capture
from deploy.sources.fault import StreamError
from lfd.preprocess import Image


def timeouts(options: Options) -> list[int]:
    """Return the time-outs as OpenCV's parameters; without them a dead server is waited for 30 s."""
    opening, reading = round(1e3 * options.open_timeout_s), round(1e3 * options.read_timeout_s)
    return [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, opening, cv2.CAP_PROP_READ_TIMEOUT_MSEC, reading]


class LiveSource:
    """What a capture gives, as it comes; pictures that have only waited are passed over.

    A stream that changes its size midway goes on at the first size, scaled by OpenCV, or (JPEG) at its own.

    Args:
        capture: Open; closed with this.
        first: The picture that was read to see whether it gives any.
        timeout_s: What a read may take.
        lost: Makes the error from how many pictures came before and how long, s, the last wait was.

    Raises:
        StreamError: While iterating: it was lost.
    """

    def __init__(
        self, capture: Capture, first: Image, timeout_s: float, lost: Callable[[int, float], StreamError]
    ) -> None:
        self._capture, self._timeout_s, self._lost = capture, timeout_s, lost
        self._first: Frame | None = Frame(first, 0, time.monotonic_ns())
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.info = VideoInfo((first.shape[1], first.shape[0]), fps if 1 <= fps <= 1000 else 0.0, None, True)

    def __iter__(self) -> Iterator[Frame]:
        frame, self._first = self._first, None
        backlog = Backlog(1 / self.info.fps if self.info.fps else 0.0)
        index = 0
        while frame is not None:
            yield frame
            is_old = True
            while is_old:
                asked = time.monotonic()
                there = self._capture.grab()
                came = time.monotonic()
                if self._capture.closed:
                    return
                # After its time-out FFmpeg flushes the decoder: one last old picture, then none ever again.
                if not there or came - asked >= 0.98 * self._timeout_s:
                    raise self._lost(index + 1, came - asked)
                index += 1
                is_old = backlog.is_old(asked, came)
            image = self._capture.retrieve()
            if image is None and not self._capture.closed:
                raise self._lost(index, came - asked)
            frame = Frame(image, index, round(came * 1e9)) if image is not None else None

    def close(self) -> None:
        """Release the capture; a read that is under way ends with its time-out at the latest."""
        self._capture.close()
