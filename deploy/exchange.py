"""Where the stages of a run meet: who may put, take and give what, and when.

Readers put frames, one lane a stream; the inference takes at most one of each lane at a time and gives what it found,
in the order in which it took; the caller takes that, lane by lane. One lock guards it all, so that every rule is a few
lines in one place.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic

from deploy.frames import StreamStatus
from deploy.lane import REMEMBERED, RESULTS, I, Lane, O

FRESH_S = 0.01
"""How long a live stream's result may lie before it gives way to a newer frame."""


class Stopped(Exception):  # noqa: N818 - a message between stages
    """The run, or this lane, was stopped: the stage ends."""


class Ended(Exception):  # noqa: N818 - a message between stages
    """Everything that was put has been taken."""


class Exchange(Generic[I, O]):
    """The frames that wait, of all streams.

    A file's reader waits when QUEUE frames wait, and its frames are inferred when there is room for the result: every
    frame, in order. A live source never waits: a newer frame takes the place of an older one, before the inference and
    after it. Where the caller is slower than the model, an inference of a live stream begins only so late that it
    will have ended when the caller is expected to be free; a result that lies for longer than FRESH_S all the same
    gives way when there is a newer frame. So what the caller gets of one stream is no older than the time between two
    frames and one inference; results of several streams from one inference wait for each other's writes besides.

    Args:
        live: For each lane whether its source is live.
        on_drop: Told the lane and how many of its frames gave way; must not call back.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        live: Sequence[bool],
        on_drop: Callable[[int, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._work, self._out = threading.Condition(self._lock), threading.Condition(self._lock)
        self._lanes: list[Lane[I, O]] = [Lane(is_live, self._lock) for is_live in live]
        self._clock, self._on_drop = clock, on_drop
        self._stopped = False
        self._turn = self._next_out = 0
        self._taken_at = 0.0
        self._inferences: deque[float] = deque(maxlen=REMEMBERED)
        self._writing: tuple[Lane[I, O], float] | None = None

    def put(self, index: int, item: I) -> None:
        """Add a frame to a lane. For the lane's reader.

        Raises:
            Stopped: `stop` was called, or `close` for this lane.
        """
        lane = self._lanes[index]
        with self._lock:
            while not lane.live and lane.full and not self._stopped and not lane.closed:
                lane.room.wait()
            self._check(lane)
            if lane.live:
                self._make_way(index, lane.waiting)
                lane.note_put(self._clock())
            lane.waiting.append(item)
            self._work.notify()

    def put_status(self, index: int, status: StreamStatus) -> None:
        """Add how the stream is, behind the frames that came before it.

        Raises:
            Stopped: Likewise.
        """
        lane = self._lanes[index]
        with self._lock:
            self._check(lane)
            if lane.waiting or lane.in_hand:
                lane.waiting.append(status)
                self._work.notify()
            else:
                lane.done.append(status)
                self._out.notify()

    def end(self, index: int) -> None:
        """Say that nothing more comes into a lane."""
        with self._lock:
            self._lanes[index].ended = True
            self._work.notify()
            self._out.notify()

    def take(self, limit: int | None) -> list[tuple[int, I]]:
        """Wait for frames; return at most one of each lane, with its lane. For the inference: one thread at a time.

        Args:
            limit: Most frames; lanes take turns. None for no limit.

        Raises:
            Ended: All lanes have ended, and nothing waits.
            Stopped: `stop` was called.
        """
        with self._lock:
            while True:
                self._check()
                ready, wait_s = self._ready()
                if ready:
                    self._taken_at = self._clock()
                    return [(index, self._pick(index)) for index in ready[:limit]]
                if all(lane.drained for lane in self._lanes):
                    raise Ended
                self._work.wait(wait_s)

    def _ready(self) -> tuple[list[int], float | None]:
        """Return the lanes to take from, the one whose turn it is first; or the seconds until there may be one."""
        wait_s = self._wait_s()
        ready, held = [], False
        for offset in range(len(self._lanes)):
            index = (self._turn + offset) % len(self._lanes)
            lane = self._lanes[index]
            while lane.waiting and not lane.in_hand and isinstance(lane.waiting[0], StreamStatus):
                lane.done.append(lane.waiting.popleft())  # type: ignore[arg-type]
                lane.room.notify()
                self._out.notify()
            if not lane.waiting or lane.closed or isinstance(lane.waiting[0], StreamStatus):
                continue
            if lane.live and wait_s > 0:
                held = True
            elif lane.live or lane.in_hand + len(lane.done) < RESULTS:
                ready.append(index)
        if len(ready) == 1 and (lane := self._lanes[ready[0]]).live and (due_s := lane.next_due_s(self._clock())) > 0:
            return [], due_s
        return ready, wait_s if held else None

    def _wait_s(self) -> float:
        """Return for how long a live stream's inference would still end before the caller is free."""
        if not self._inferences:
            return 0.0
        now = self._clock()
        free_at = sum((lane.write_s for lane in self._lanes if lane.done), now)
        if self._writing is not None:
            lane, since = self._writing
            free_at += since + lane.write_s - now
        return free_at - min(self._inferences) - now

    def _pick(self, index: int) -> I:
        lane = self._lanes[index]
        item: I = lane.waiting.popleft()  # type: ignore[assignment]  # `_ready` has taken the statuses before it
        lane.in_hand += 1
        lane.room.notify()
        self._turn = (index + 1) % len(self._lanes)
        return item

    def give(self, results: Sequence[tuple[int, O]]) -> None:
        """Hand on what was found for all that was taken.

        Raises:
            Stopped: `stop` was called.
        """
        with self._lock:
            self._check()
            now = self._clock()
            self._inferences.append(now - self._taken_at)
            for index, result in results:
                lane = self._lanes[index]
                lane.in_hand -= 1
                if lane.closed:
                    continue
                if lane.live:
                    self._make_way(index, lane.done)
                lane.done.append(result)
                # To who waits for it, it is handed at once: what the system takes to wake a thread makes none outdated.
                lane.given_at = now if self._writing is not None else math.inf
            self._work.notify()  # a status may have waited behind them
            self._out.notify()

    def next(self, timeout_s: float) -> tuple[int, O | StreamStatus] | None:
        """Return the next result or status, with its lane, lanes in turn; None when none came in time. For the caller.

        Raises:
            Ended: All lanes are over.
            Stopped: `stop` was called.
        """
        with self._lock:
            self._free()
            if not (found := self._found()) and not self._stopped and not all(lane.over for lane in self._lanes):
                self._out.wait(timeout_s)
                found = self._found()
            self._check()
            if found:
                return found
            if all(lane.over for lane in self._lanes):
                raise Ended
            return None

    def _free(self) -> None:
        """Note that the caller is back, and how long it was away with a result."""
        if self._writing is not None:
            lane, since = self._writing
            lane.writes.append(self._clock() - since)
            self._writing = None
            self._work.notify()

    def _found(self) -> tuple[int, O | StreamStatus] | None:
        for offset in range(len(self._lanes)):
            index = (self._next_out + offset) % len(self._lanes)
            lane = self._lanes[index]
            outdated = lane.live and self._clock() - lane.given_at > FRESH_S
            if outdated and (lane.in_hand or lane.waiting):
                self._make_way(index, lane.done)
            if lane.done:
                self._next_out = (index + 1) % len(self._lanes)
                item = lane.done.popleft()
                if not isinstance(item, StreamStatus):
                    self._writing = lane, self._clock()
                self._work.notify()
                return index, item
        return None

    def close(self, index: int) -> None:
        """End a lane here and now; what waits in it is lost, and its reader is told to stop."""
        lane = self._lanes[index]
        with self._lock:
            lane.closed = True
            lane.waiting.clear()
            lane.done.clear()
            lane.room.notify()
            self._work.notify()

    def stop(self) -> None:
        """Wake all stages and make them end; what waits is lost."""
        with self._lock:
            self._stopped = True
            for condition in (self._work, self._out, *(lane.room for lane in self._lanes)):
                condition.notify_all()

    def _check(self, lane: Lane[I, O] | None = None) -> None:
        if self._stopped or (lane is not None and lane.closed):
            raise Stopped

    def _make_way(self, index: int, items: deque[I | StreamStatus] | deque[O | StreamStatus]) -> None:
        """Take the frames out of a lane's queue; the statuses stay."""
        statuses = [item for item in items if isinstance(item, StreamStatus)]
        if gone := len(items) - len(statuses):
            items.clear()
            items.extend(statuses)
            self._on_drop(index, gone)
