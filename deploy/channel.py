"""The bounded queue between two stages of the pipeline."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - a message between stages
    """The channel was stopped: the stage ends."""


class Ended(Exception):  # noqa: N818 - a message between stages
    """Everything that was put has been taken."""


class Channel(Generic[T]):
    """A bounded queue from one stage to the next.

    Args:
        size: Items that may wait.
        newest: A full channel drops its oldest item instead of making the sender wait.
    """

    def __init__(self, size: int, newest: bool) -> None:
        self._items: deque[T] = deque()
        self._size, self._newest = size, newest
        self._changed = threading.Condition()
        self._ended = self._stopped = False

    def put(self, item: T) -> int:
        """Add an item; return how many gave way to it.

        Raises:
            Stopped: `stop` was called.
        """
        with self._changed:
            while len(self._items) >= self._size and not self._newest and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise Stopped
            gave_way = 0
            while len(self._items) >= self._size:
                self._items.popleft()
                gave_way += 1
            self._items.append(item)
            self._changed.notify_all()
            return gave_way

    def get(self, timeout_s: float | None = None) -> T | None:
        """Take the oldest item; None when none came in time.

        Raises:
            Ended: The sender has ended and nothing is left.
            Stopped: `stop` was called.
        """
        with self._changed:
            if not self._items and not self._ended and not self._stopped:
                self._changed.wait(timeout_s)
            if self._stopped:
                raise Stopped
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._ended:
                raise Ended
            return None

    def end(self) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake both sides and make them end; what waits is lost."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
