"""A live source that comes back after it was lost."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from deploy.frames import Frame, FrameSource, State, StreamStatus
from deploy.sources.fault import StreamError
from deploy.sources.stop import Stop

STABLE_S = 10.0
"""A stream that is lost sooner after it came back is tried again no faster than before."""
LAST_S = 1.0
"""What the last attempt is given before a stream is given up."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Backoff:
    """Waits between attempts: exponential with equal jitter.

    The n-th wait is drawn evenly from [c/2, c] with c = min(longest, 2^(n+1) first), so that many clients of one
    server do not come back together, and none at once (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
    Blog, 2015).

    Attributes:
        first_s: The shortest wait.
        longest_s: The longest.
        draw: Returns a number from [0, 1).
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    draw: Callable[[], float] = random.random

    def wait_s(self, attempt: int) -> float:
        """Return the wait before an attempt, counted from 0."""
        ceiling = min(self.longest_s, self.first_s * 2.0 ** min(attempt + 1, 60))
        return ceiling * (1 + self.draw()) / 2


class _Attempt:
    """An opening in a thread of its own: nothing ends one that a library has under way.

    Args:
        open_stream: Opens the source; raises StreamError.
    """

    def __init__(self, open_stream: Callable[[], FrameSource]) -> None:
        self._open = open_stream
        self._lock = threading.Lock()
        self._left = False
        self._source: FrameSource | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lfd-reopen", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            source = self._open()
        except BaseException as error:
            self._error = error
            return
        with self._lock:
            if not self._left:
                self._source = source
                return
        source.close()

    def result(self, given_up: Callable[[], bool]) -> FrameSource | None:
        """Wait for the source; return None once it is given up, and close it should it open after all.

        Raises:
            StreamError: It did not open.
        """
        while self._thread.is_alive() and not given_up():
            self._thread.join(_POLL_S)
        with self._lock:
            self._left = True
        if self._error is not None:
            raise self._error
        return self._source


class Reconnecting:
    """A source around one that may be lost: it says so, waits, opens it again, and goes on.

    Frames are numbered on. A source that ends by itself (a film) ends this one. Nothing is tried after `close`.

    Args:
        open_stream: Opens the source; raises StreamError.
        give_up_s: Length of one outage after which it is final, give or take LAST_S; None: never.
        backoff: The waits.
        stop: Shared with `open_stream`, so that `close` ends its waits too.
        clock: Seconds; as `stop.wait` waits.

    Raises:
        StreamError: The first opening failed. While iterating: given up.
    """

    def __init__(
        self,
        open_stream: Callable[[], FrameSource],
        give_up_s: float | None = None,
        backoff: Backoff | None = None,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open, self._give_up_s = open_stream, give_up_s
        self._backoff, self._stop, self._clock = backoff or Backoff(), stop or Stop(), clock
        self._source = open_stream()
        self.info = self._source.info
        self._reconnects = self._step = 0

    def __iter__(self) -> Iterator[Frame | StreamStatus]:
        base, since = 0, self._clock()
        while True:
            last = base - 1
            try:
                for item in self._source:
                    if isinstance(item, Frame):
                        item = replace(item, index=base + item.index)  # noqa: PLW2901
                        last = item.index
                    yield item
                return
            except StreamError as fault:
                lost = fault
            self._source.close()
            if self._stop.is_set():
                return
            if self._clock() - since >= STABLE_S:
                self._step = 0
            yield from self._until_back(lost)
            if self._stop.is_set():
                return
            base, since = last + 1, self._clock()

    def _until_back(self, fault: StreamError) -> Iterator[StreamStatus]:
        """Yield what is tried until the source is open again, or `close` was called."""
        begin = self._clock()
        end = begin + (math.inf if self._give_up_s is None else self._give_up_s)
        for attempt in count():
            now = self._clock()
            if now >= end:
                raise self._given_up(fault, attempt, now - begin)
            wait = min(self._backoff.wait_s(self._step), end - now)
            self._step += 1
            yield self._status(State.LOST, begin, fault, attempt, wait)
            if self._stop.wait(wait):
                return
            try:
                source = self._attempt(max(end, self._clock() + LAST_S))
            except StreamError as again:
                fault = again
                source = None
            if self._stop.is_set():  # closed while it was opened
                if source is not None:
                    source.close()
                return
            if source is None:
                continue
            self._source = source
            self._reconnects += 1
            yield self._status(State.LIVE, self._clock(), None, attempt + 1, None)
            return

    def _attempt(self, end: float) -> FrameSource | None:
        """Open the source; return None where it takes until the end."""
        return _Attempt(self._open).result(lambda: self._stop.is_set() or self._clock() >= end)

    def _status(
        self, state: State, since: float, fault: StreamError | None, attempt: int, wait: float | None
    ) -> StreamStatus:
        cause, detail = (fault.cause, fault.detail) if fault else (None, "")
        return StreamStatus(state, round(since * 1e9), cause, detail, self._reconnects, attempt, wait)

    def _given_up(self, fault: StreamError, attempts: int, outage: float) -> StreamError:
        return fault.with_detail(f"given up {outage:.1f} s and {attempts} attempts after it was lost: {fault.detail}")

    def close(self) -> None:
        """End the iteration and every wait, from any thread."""
        self._stop.set()
        self._source.close()
