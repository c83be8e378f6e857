from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from doubles import ListSink, ListSource, number_of
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.backends.fake import FakeSession
from deploy.channel import Channel, Ended, Stopped
from deploy.frames import StopRequested
from deploy.pipeline import STAGES, RunSummary, run
from deploy.sinks import NullSink
from lfd.data.street import LABELS as STREET
from lfd.errors import ModelError, SinkError, SourceError
from lfd.preprocess import restore_map
from lfd.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("no_thread_left")
SLACK_S = 8.0
"""A hang guard: what ends within a second on an idle machine."""


def consistent(summary: RunSummary) -> None:
    assert summary.captured == summary.shown + summary.dropped
    assert summary.dropped_late >= 0 and summary.dropped_at_end >= 0
    assert set(summary.stages) == set(STAGES)
    assert summary.seconds > 0 and summary.fps == pytest.approx(summary.shown / summary.seconds)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_a_film_comes_whole_and_in_order(spec: ModelSpec, count: int) -> None:
    source, sink, other, shown = ListSource(count), ListSink(), ListSink(), []
    session = FakeSession(spec)
    summary = run(session, source, [sink, other], progress=shown.append)
    consistent(summary)
    assert (summary.captured, summary.shown, summary.dropped, summary.interrupted) == (count, count, 0, False)
    assert [f.index for f in sink.frames] == [f.index for f in other.frames] == list(range(count))
    assert shown == list(range(1, count + 1))
    assert (source.closed, sink.complete, other.complete, session.closed) == (1, [True], [True], False)
    assert summary.latency is not None and summary.latency.count == count
    assert all(stage is not None for stage in summary.stages.values())


@pytest.mark.parametrize("output", ["class_map", "logits"])
def test_the_map_is_the_frames_own_at_its_size(spec: ModelSpec, output: str) -> None:
    session, sink = FakeSession(replace(spec, output=output)), ListSink()  # type: ignore[arg-type]
    run(session, ListSource(9, size_hw=(50, 70)), [sink])
    for frame, classes in zip(sink.frames, sink.maps, strict=True):
        from lfd.preprocess import fit_frame

        alone = FakeSession(spec).run(fit_frame(frame.image, spec.preprocess)[None])[0]
        np.testing.assert_array_equal(classes, restore_map(alone, spec.preprocess, (50, 70)))


def test_the_sessions_array_may_be_used_again(spec: ModelSpec) -> None:
    class Reusing(FakeSession):
        """Returns the same array each time, as a runtime with fixed buffers does."""

        buffer = np.zeros((1, 24, 32), np.uint8)

        def run(self, batch: np.ndarray) -> np.ndarray:
            self.buffer[:] = number_of(batch[0]) % 3
            return self.buffer

    sink = ListSink(before=lambda index: time.sleep(0.002))
    run(Reusing(spec), ListSource(20), [sink])
    assert [int(m[0, 0]) for m in sink.maps] == [index % 3 for index in range(20)]


def test_max_frames(spec: ModelSpec) -> None:
    source, sink = ListSource(100), ListSink()
    summary = run(FakeSession(spec), source, [sink], max_frames=7)
    assert (summary.captured, summary.shown, summary.dropped) == (7, 7, 0)
    assert sink.complete == [True] and source.closed
    live = run(FakeSession(spec, 0.01), ListSource(10**6, live=True), [NullSink()], max_frames=7)
    consistent(live)
    assert live.shown == 7


def test_a_camera_gives_the_newest_frame(spec: ModelSpec) -> None:
    source = ListSource(60, live=True, before=lambda index: time.sleep(0.005))
    sink = ListSink()
    summary = run(FakeSession(spec, delay_s=0.05), source, [sink])
    consistent(summary)
    indices = [f.index for f in sink.frames]
    assert indices == sorted(set(indices)), "never back in time"
    assert summary.captured == 60 and summary.shown == len(indices) < 60
    assert summary.dropped_late == summary.dropped > 0
    assert indices[-1] == 59, "the last frame is the newest, and is shown"


def test_never_more_than_one_waits_for_a_slow_camera_model(spec: ModelSpec) -> None:
    given_out = 0
    lag: list[int] = []

    def count(index: int) -> None:
        nonlocal given_out
        given_out = index
        time.sleep(0.002)

    class Watching(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            lag.append((given_out - number_of(batch[0])) % 30)
            return super().run(batch)

    run(Watching(spec, delay_s=0.02), ListSource(200, live=True, before=count), [NullSink()])
    # The frame in hand is the newest, or the one before while the next is being read; slack for a busy machine.
    assert sorted(lag)[len(lag) // 2] <= 2


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("stage", ["source", "session", "sink", "first frame", "sink close", "source close"])
def test_a_stage_that_raises_ends_all(spec: ModelSpec, stage: str, live: bool) -> None:
    cause: Exception = {
        "source": SourceError("lost"),
        "session": ModelError("does not fit"),
        "sink": SinkError("full"),
        "first frame": ZeroDivisionError("ours"),
        "sink close": SinkError("cannot finish"),
        "source close": SourceError("cannot release"),
    }[stage]

    def at(index: int, name: str, when: int) -> None:
        if stage == name and index >= when:
            raise cause

    source = ListSource(30, live, before=lambda i: at(i, "first frame", 0) or at(i, "source", 5) or time.sleep(0.002))
    sink = ListSink(before=lambda i: at(i, "sink", 5))
    other = ListSink()

    class Failing(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            at(self.calls, "session", 5)
            return super().run(batch)

    def failing_close(inner: Callable[..., None]) -> Callable[..., None]:
        def close(*args: bool) -> None:
            inner(*args)
            raise cause

        return close

    if stage == "sink close":
        sink.close = failing_close(sink.close)  # type: ignore[method-assign]
    if stage == "source close":
        source.close = failing_close(source.close)  # type: ignore[method-assign]
    begin = time.perf_counter()
    with pytest.raises(type(cause)) as caught:
        run(Failing(spec), source, [sink, other])
    assert caught.value is cause
    assert time.perf_counter() - begin < SLACK_S
    assert source.closed == 1 and len(sink.complete) == len(other.complete) == 1
    assert other.complete == [False]


def test_the_first_cause_wins(spec: ModelSpec) -> None:
    first, later = SinkError("first"), SourceError("later")
    sink = ListSink()
    sink.write = lambda frame, classes: (_ for _ in ()).throw(first)  # type: ignore[method-assign]
    source = ListSource(30)
    source.close = lambda: (_ for _ in ()).throw(later)  # type: ignore[method-assign]
    with pytest.raises(SinkError, match="first"):
        run(FakeSession(spec), source, [sink])


def test_a_failing_sink_does_not_wait_for_a_source_that_hangs(spec: ModelSpec) -> None:
    release = threading.Event()

    def hang(index: int) -> None:
        if index == 3:
            release.wait(60)

    def fail(index: int) -> None:
        if index == 2:
            raise SinkError("full")

    begin = time.perf_counter()
    with pytest.raises(SinkError, match="full"):
        run(FakeSession(spec), ListSource(10, before=hang), [ListSink(before=fail)])
    assert time.perf_counter() - begin < SLACK_S
    release.set()
    for thread in threading.enumerate():
        if thread.name == "lfd-read":
            assert thread.daemon
            thread.join(5)


def test_a_viewer_ends_the_run(spec: ModelSpec) -> None:
    def close_window(index: int) -> None:
        if index == 4:
            raise StopRequested

    sink = ListSink(before=close_window)
    summary = run(FakeSession(spec), ListSource(100), [sink])
    consistent(summary)
    assert summary.shown == 4 and sink.complete == [True] and not summary.interrupted


def test_works_in_a_thread_that_is_not_the_main_one(spec: ModelSpec) -> None:
    results: list[RunSummary] = []
    thread = threading.Thread(target=lambda: results.append(run(FakeSession(spec), ListSource(5), [NullSink()])))
    thread.start()
    thread.join(SLACK_S)
    assert results[0].shown == 5


def test_the_scenes_truth_gives_the_miou(spec: ModelSpec) -> None:
    from deploy.sources import open_source

    def street() -> object:
        return open_source("street:?size=48x64&frames=4")

    right = replace(spec, labels=STREET, preprocess=replace(spec.preprocess, size_hw=(48, 64)))
    truths = [frame.truth for frame in street()]  # type: ignore[attr-defined]
    answers = iter(truths)
    perfect = FakeSession(right, rule=lambda image: next(answers))  # type: ignore[return-value,arg-type]
    summary = run(perfect, street(), [NullSink()])  # type: ignore[arg-type]
    assert summary.miou == pytest.approx(1.0)
    assert run(FakeSession(spec), street(), [NullSink()]).miou is None  # type: ignore[arg-type]
    assert run(FakeSession(right), ListSource(3), [NullSink()]).miou is None


@given(size=st.integers(1, 4), newest=st.booleans(), moves=st.lists(st.booleans(), max_size=40))
@settings(deadline=None)
def test_a_channel_keeps_order_and_its_bound(size: int, newest: bool, moves: list[bool]) -> None:
    channel: Channel[int] = Channel(size, newest)
    waiting: list[int] = []
    for number, put in enumerate(moves):
        if put and (newest or len(waiting) < size):
            assert channel.put(number) == max(0, len(waiting) + 1 - size)
            waiting = [*waiting, number][-size:]
        elif not put and waiting:
            assert channel.get() == waiting.pop(0)
        elif not put:
            assert channel.get(0.0) is None
    channel.end()
    while waiting:
        assert channel.get() == waiting.pop(0)
    with pytest.raises(Ended):
        channel.get()
    channel.stop()
    for use in (channel.get, lambda: channel.put(0)):
        with pytest.raises(Stopped):
            use()
