"""Cameras that send JPEG pictures over HTTP."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator

from deploy.frames import Cause, Frame, VideoInfo
from deploy.sources.address import Options
from deploy.sources.backlog import Backlog
from deploy.sources.fault import StreamError
from deploy.sources.multipart import Parts, decode_jpeg
from deploy.sources.web import Answer
from lfd.preprocess import Image

MAX_DAMAGED = 100
"""Pictures in a row that cannot be decoded before it is no video; three seconds of a common camera."""


class MjpegSource:
    """The pictures of a `multipart/x-mixed-replace` answer, live; each may have another size.

    Args:
        name: The source as the user wrote it.
        answer: The server's answer, closed with this.
        options: Its time-outs.

    Raises:
        StreamError: No picture comes. While iterating: it was lost.
    """

    def __init__(self, name: str, answer: Answer, options: Options) -> None:
        self._name, self._answer, self._timeout_s = name, answer, options.read_timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._index = 0
        self._backlog = Backlog()
        try:
            self._parts = Parts(answer.body, answer.content_type)
            first = self._read()
        except ValueError as error:
            self.close()
            raise StreamError(Cause.UNREADABLE, name, str(error)) from None
        except StreamError:
            self.close()
            raise
        if first is None:
            raise StreamError(Cause.CLOSED, name, "closed while it was opened")
        self._first: Frame | None = first
        height, width = first.image.shape[:2]
        self.info = VideoInfo((width, height), 0.0, None, True)

    def __iter__(self) -> Iterator[Frame]:
        frame, self._first = self._first, None
        while frame is not None:
            yield frame
            frame = self._read()

    def _read(self) -> Frame | None:
        """Return the newest picture, or None after `close`."""
        asked = begin = time.monotonic()
        damaged = 0
        while True:
            with self._lock:
                data = self._next(begin + self._timeout_s - time.monotonic(), damaged)
            if data is None:
                return None
            came = time.monotonic()
            index, self._index = self._index, self._index + 1
            if not self._backlog.is_old(asked, came):
                image: Image | None = decode_jpeg(data)
                if image is not None:
                    return Frame(image, index, round(came * 1e9))
                damaged += 1
                if damaged == MAX_DAMAGED:
                    raise StreamError(Cause.UNREADABLE, self._name, f"{damaged} pictures in a row are damaged")
            asked = came

    def _next(self, seconds: float, damaged: int) -> bytes | None:
        if self._closed:
            return None
        self._answer.allow(seconds)
        try:
            return self._parts.next()
        except TimeoutError:
            cause = Cause.UNREADABLE if damaged else Cause.TIMED_OUT
            detail = f"no {'whole ' if damaged else ''}picture within {self._timeout_s:g} s"
        except (EOFError, OSError, http.client.HTTPException):
            cause, detail = Cause.CLOSED, f"the server ended the stream after {self._index} pictures"
        except ValueError as error:
            cause, detail = Cause.UNREADABLE, str(error)
        if self._closed:
            return None
        raise StreamError(cause, self._name, detail)

    def close(self) -> None:
        """End the stream, also one that is being read."""
        self._closed = True
        self._answer.abort()
        with self._lock:
            self._answer.close()
