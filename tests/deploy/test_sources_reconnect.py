"""Waits and attempts of a live source that is lost, with a clock of the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.frames import Cause, Frame, State, StreamStatus, VideoInfo
from deploy.sources.fault import StreamError
from deploy.sources.reconnect import LAST_S, Backoff, Reconnecting
from deploy.sources.stop import Stop
from lfd.errors import SourceError

IMAGE = np.full((4, 4, 3), 7, np.uint8)


class Clock(Stop):
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return self.is_set()


class Stream:
    """Gives some pictures, then ends as told; `lasts` seconds go by."""

    def __init__(self, clock: Clock, frames: int, end: Exception | None, lasts: float = 0.0) -> None:
        self.info = VideoInfo((4, 4), 30.0, None, True)
        self._clock, self._frames, self._end, self._lasts = clock, frames, end, lasts
        self.closed = 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._frames):
            yield Frame(IMAGE, index, 0)
        self._clock.now += self._lasts
        if self._end:
            raise self._end

    def close(self) -> None:
        self.closed += 1


def lost(cause: Cause = Cause.CLOSED) -> StreamError:
    return StreamError(cause, "rtsp://u:hunter2@h/x", f"because {cause.value}")


def script(clock: Clock, *steps: Stream | Exception) -> tuple[Callable[[], Stream], list[Stream]]:
    remaining, opened = list(steps), []

    def open_stream() -> Stream:
        step = remaining.pop(0)
        if isinstance(step, Exception):
            raise step
        opened.append(step)
        return step

    return open_stream, opened


def test_it_goes_on_where_it_was() -> None:
    clock = Clock()
    steps = Stream(clock, 3, lost()), lost(Cause.REFUSED), lost(Cause.TIMED_OUT), Stream(clock, 2, None)
    open_stream, opened = script(clock, *steps)
    source = Reconnecting(open_stream, None, Backoff(draw=lambda: 0.0), clock, clock)
    items = list(source)
    assert [item.index if isinstance(item, Frame) else item.state for item in items] == [
        *(0, 1, 2),
        *(State.LOST, State.LOST, State.LOST, State.LIVE),
        *(3, 4),
    ]
    statuses = [item for item in items if isinstance(item, StreamStatus)]
    assert [s.cause for s in statuses] == [Cause.CLOSED, Cause.REFUSED, Cause.TIMED_OUT, None]
    assert [s.attempt for s in statuses] == [0, 1, 2, 3]
    assert [s.retry_in_s for s in statuses] == [0.5, 1.0, 2.0, None]
    assert [s.reconnects for s in statuses] == [0, 0, 0, 1]
    assert [s.since_ns for s in statuses] == [100e9, 100e9, 100e9, 103.5e9]
    assert [s.detail for s in statuses] == ["because closed", "because refused", "because timed out", ""]
    assert clock.waits == [0.5, 1.0, 2.0]
    assert opened[0].closed == 1


def test_the_first_failure_is_final() -> None:
    clock = Clock()
    with pytest.raises(StreamError, match=r"rtsp://\*\*\*@h/x: because refused \(refused\)\. Fix: check the port"):
        Reconnecting(script(clock, lost(Cause.REFUSED))[0], stop=clock, clock=clock)
    assert clock.waits == []


def test_what_is_no_loss_is_not_mended() -> None:
    clock = Clock()
    source = Reconnecting(script(clock, Stream(clock, 1, SourceError("cut")))[0], stop=clock, clock=clock)
    with pytest.raises(SourceError, match="cut"):
        list(source)
    assert clock.waits == []


@pytest.mark.parametrize("give_up_s", [0.0, 0.3, 1.0, 5.0, 100.0])
def test_giving_up(give_up_s: float) -> None:
    clock = Clock()
    open_stream = script(clock, Stream(clock, 1, lost()), *[lost(Cause.REFUSED)] * 100)[0]
    source = Reconnecting(open_stream, give_up_s, Backoff(), clock, clock)
    with pytest.raises(StreamError, match="given up") as caught:
        list(source)
    assert sum(clock.waits) == pytest.approx(give_up_s)
    assert caught.value.exit_code == 3
    assert caught.value.cause is (Cause.REFUSED if give_up_s else Cause.CLOSED)


def test_giving_up_does_not_wait_for_an_opening_that_hangs() -> None:
    """As of a server that takes connections and says nothing: FFmpeg has its time-outs, we have ours."""
    clock, may_open, closed = Clock(), threading.Event(), threading.Event()

    class Late(Stream):
        def close(self) -> None:
            closed.set()

    steps: list[Stream] = [Stream(clock, 1, lost()), Late(clock, 1, None)]

    def open_stream() -> Stream:
        stream = steps.pop(0)
        if isinstance(stream, Late):
            may_open.wait(30)
        return stream

    source = Reconnecting(open_stream, 1.5, Backoff(first_s=0.1))
    begin = time.monotonic()
    with pytest.raises(StreamError, match=r"given up 1\.[5-9] s and 1 attempts after it was lost: because closed"):
        list(source)
    assert 1.5 <= time.monotonic() - begin < 1.5 + LAST_S + 1
    source.close()
    may_open.set()
    assert closed.wait(5), "what opens after all is closed"


def test_the_last_attempt_gets_a_second() -> None:
    clock, asked, may_end = Clock(), [], threading.Event()
    first = Stream(clock, 1, lost())

    def open_stream() -> Stream:
        if not asked:
            asked.append(0.0)
            return first
        asked.append(time.monotonic())
        may_end.wait(30)
        raise lost()

    source = Reconnecting(open_stream, 0.2, Backoff(first_s=60))
    with pytest.raises(StreamError, match="given up"):
        list(source)
    assert LAST_S - 0.1 <= time.monotonic() - asked[1] < LAST_S + 1
    may_end.set()


@pytest.mark.parametrize(("lasts", "expected"), [(0.0, [0.5, 1.0, 2.0]), (11.0, [0.5, 0.5, 0.5])])
def test_a_stream_that_is_lost_at_once_is_not_hammered(lasts: float, expected: list[float]) -> None:
    clock = Clock()
    steps = [Stream(clock, 1, lost(), lasts) for _ in range(3)]
    source = Reconnecting(
        script(clock, *steps, Stream(clock, 1, None))[0], None, Backoff(draw=lambda: 0.0), clock, clock
    )
    frames = [item for item in source if isinstance(item, Frame)]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert clock.waits == expected


def test_nothing_is_tried_after_close() -> None:
    clock = Clock()
    open_stream, opened = script(clock, Stream(clock, 2, lost()), Stream(clock, 2, lost()))
    source = Reconnecting(open_stream, None, Backoff(), clock, clock)
    items = iter(source)
    while not isinstance(next(items), StreamStatus):
        pass
    source.close()
    assert list(items) == [] and len(opened) == 1
    source.close()


def test_closed_while_it_is_opened() -> None:
    clock = Clock()
    late = Stream(clock, 5, None)
    steps: list[Stream] = [Stream(clock, 1, lost()), late]

    def open_stream() -> Stream:
        stream = steps.pop(0)
        if stream is late:
            source.close()
        return stream

    source = Reconnecting(open_stream, None, Backoff(), clock, clock)
    assert len([item for item in source if isinstance(item, Frame)]) == 1
    assert late.closed == 1


def test_close_ends_a_real_wait_at_once() -> None:
    clock = Clock()
    open_stream = script(clock, Stream(clock, 1, lost()), *[lost()] * 9)[0]
    source = Reconnecting(open_stream, None, Backoff(first_s=60, longest_s=60))
    reader = threading.Thread(target=lambda: list(source))
    reader.start()
    time.sleep(0.1)
    begin = time.monotonic()
    source.close()
    reader.join(5)
    assert not reader.is_alive() and time.monotonic() - begin < 1


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_every_wait_is_within_half_of_its_ceiling(attempt: int, drawn: float) -> None:
    wait = Backoff(draw=lambda: drawn).wait_s(attempt)
    ceiling = min(30.0, 2.0 ** min(attempt, 30))
    assert 0.5 <= ceiling / 2 <= wait <= ceiling <= 30


def test_waits_are_spread() -> None:
    """The mean of equal jitter is 3/4 of the ceiling, its deviation ceiling / (4 sqrt 3)."""
    waits = np.array([Backoff().wait_s(20) for _ in range(4000)])
    assert waits.mean() == pytest.approx(22.5, abs=5 * 30 / (4 * 3**0.5) / 4000**0.5)
    assert waits.std() == pytest.approx(30 / (4 * 3**0.5), rel=0.1)
