from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from doubles import ListSink, ListSource, ScriptSource, back, lost, number_of, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.backends.fake import FakeSession
from deploy.frames import Cause, Frame, State, StopRequested, StreamStatus
from deploy.pipeline import Pipeline, run
from deploy.reader import Limits, Pace, Stream
from deploy.run_summary import RunSummary
from deploy.smoothing import Smoothing
from deploy.stats import STAGES
from lfd.data.street import LABELS as STREET
from lfd.errors import ModelError, SinkError, SourceError, UsageError
from lfd.preprocess import fit_frame, restore_map
from lfd.spec import Labels, ModelSpec, Preprocess

pytestmark = pytest.mark.usefixtures("no_thread_left")
SLACK_S = 8.0
"""A hang guard: what ends within a second on an idle machine."""


def run_all(session: FakeSession, streams: list[Stream], *args: object, **kwargs: object) -> RunSummary:
    pipeline = Pipeline(session, streams, *args, **kwargs)  # type: ignore[arg-type]
    for _ in pipeline.results():
        pass
    return pipeline.summary()


def consistent(summary: RunSummary) -> None:
    for stream in summary.streams:
        assert stream.captured == stream.shown + stream.dropped
        assert stream.dropped_late >= 0 and stream.dropped_at_end >= 0
        assert set(stream.stages) == set(STAGES)
        assert summary.seconds > 0 and stream.fps == pytest.approx(stream.shown / summary.seconds)


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
        np.testing.assert_array_equal(classes, expected(spec, frame))


class Reusing(FakeSession):
    """Returns the same array to a thread each time, as a runtime with fixed buffers does; runs take turns to be long.

    Attributes:
        most: The most runs that there were side by side.
    """

    most = 0

    def __init__(self, spec: ModelSpec, **options: object) -> None:
        super().__init__(spec, **options)  # type: ignore[arg-type]
        self._here, self._lock, self._running = threading.local(), threading.Lock(), 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        if not hasattr(self._here, "buffer"):
            self._here.buffer = np.zeros((1, 24, 32), np.uint8)
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        time.sleep(0.004 if number_of(batch[0]) % 2 else 0.001)
        with self._lock:
            self._running -= 1
        self._here.buffer[:] = number_of(batch[0]) % 3
        return self._here.buffer  # type: ignore[no-any-return]


@pytest.mark.parametrize("parallel", [1, 2, 3])
@pytest.mark.parametrize("smoothing", [None, Smoothing(1e-9)])
def test_frames_inferred_side_by_side_come_in_order(
    spec: ModelSpec, parallel: int, smoothing: Smoothing | None
) -> None:
    """With a smoothing so short that it changes nothing, but sees the arrays later."""
    sinks = [ListSink(before=lambda index: time.sleep(0.002)) for _ in range(2)]
    session = Reusing(spec, parallel=parallel, batch=1)
    run_all(session, [Stream(ListSource(20), [sink]) for sink in sinks], smoothing=smoothing)
    for sink in sinks:
        assert [frame.index for frame in sink.frames] == list(range(20))
        assert [int(m[0, 0]) for m in sink.maps] == [index % 3 for index in range(20)]
    assert session.most == parallel


def test_a_live_streams_frames_are_inferred_one_by_one(spec: ModelSpec) -> None:
    session = Reusing(spec, parallel=3, batch=1)
    live = ListSource(40, live=True, before=lambda index: time.sleep(0.001))
    summary = run_all(session, [Stream(live), Stream(ListSource(20))])
    consistent(summary)
    assert session.most == 1


def test_nothing_is_shown_past_a_frame_that_failed(spec: ModelSpec) -> None:
    """The later ones have long been inferred when the fourth fails."""

    class Failing(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            if number_of(batch[0]) == 3:
                time.sleep(0.05)
                raise ModelError("does not fit")
            return super().run(batch)

    sink = ListSink()
    with pytest.raises(ModelError, match="does not fit"):
        run(Failing(spec, parallel=2), ListSource(20), [sink])
    assert [frame.index for frame in sink.frames] == [0, 1, 2] and sink.complete == [False]


def test_max_frames(spec: ModelSpec) -> None:
    source, sink = ListSource(100), ListSink()
    summary = run(FakeSession(spec), source, [sink], max_frames=7)
    assert (summary.captured, summary.shown, summary.dropped) == (7, 7, 0)
    assert sink.complete == [True] and source.closed
    live = run(FakeSession(spec, 0.01), ListSource(10**6, live=True), [], max_frames=7)
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
    assert summary.streams[0].dropped_late == summary.dropped > 0
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

    run(Watching(spec, delay_s=0.02), ListSource(200, live=True, before=count), [])
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
    given_up = type(cause) is SourceError and stage == "source"
    assert other.complete == [given_up]  # a source that ends early is no reason to throw away what it gave


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
    thread = threading.Thread(target=lambda: results.append(run(FakeSession(spec), ListSource(5), [])))
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
    summary = run(perfect, street(), [])  # type: ignore[arg-type]
    assert summary.miou == pytest.approx(1.0)
    assert run(FakeSession(spec), street(), []).miou is None  # type: ignore[arg-type]
    assert run(FakeSession(right), ListSource(3), []).miou is None


def test_statuses_reach_the_sinks_in_their_place(spec: ModelSpec) -> None:
    heard: list[object] = []

    class Sink(ListSink):
        def write(self, frame: Frame, class_map: np.ndarray) -> None:
            heard.append(frame.index)
            shown.set()

        def show_status(self, status: StreamStatus) -> None:
            if heard[-1:] != [status.state]:
                heard.append(status.state)

    found, shown = [threading.Event(), threading.Event()], threading.Event()

    class Waking(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            maps = super().run(batch)
            found[min(self.calls, 2) - 1].set()
            return maps

    told: list[State] = []
    first = [0, found[0], lost(), lost(Cause.REFUSED), back(), shown]  # the next frame may not replace a result unseen
    source = ScriptSource([*first, 1, found[1], lost(Cause.CLOSED), back()])
    summary = run_all(
        Waking(spec), [Stream(source, [Sink()])], on_status=lambda index, status: told.append(status.state)
    )
    consistent(summary)
    places = [item for item in heard if item is not State.LIVE]
    assert places == [0, State.LOST, 1, State.LOST, State.ENDED]
    assert told == [State.LOST, State.LOST, State.LIVE, State.LOST, State.LIVE, State.ENDED]
    assert summary.streams[0].losses == {"timed out": 1, "closed": 1} and summary.streams[0].reconnects == 2


def test_a_stream_has_not_ended_for_its_sinks_before_its_last_frame(spec: ModelSpec) -> None:
    """The reader is ahead of a slow model by some frames; what the sinks hear meanwhile is of their own place."""
    heard: list[object] = []

    class Sink(ListSink):
        def write(self, frame: Frame, class_map: np.ndarray) -> None:
            heard.append(frame.index)

        def show_status(self, status: StreamStatus) -> None:
            heard.append(status.state)

    run_all(FakeSession(spec, 0.15), [Stream(ListSource(3), [Sink()])])
    assert heard.count(State.LIVE) >= 3, "told while they waited"
    assert [item for item in heard if item is not State.LIVE][:4] == [0, 1, 2, State.ENDED]


@pytest.mark.parametrize("live", [False, True])
def test_sinks_hear_how_the_stream_is_while_nothing_comes(spec: ModelSpec, live: bool) -> None:
    source, sink = ScriptSource([lost(), threading.Event()], live), ListSink()
    summary = run_all(FakeSession(spec), [Stream(source, [sink])], Limits(duration_s=0.6))
    assert not summary.interrupted and source.closed.is_set() and sink.complete == [True]
    assert 3 <= len(sink.statuses) <= 14, "some 20 a second"
    assert {status.state for status in sink.statuses[2:]} == {State.LOST}


def test_a_viewer_may_end_a_run_that_waits(spec: ModelSpec) -> None:
    sink = ListSink()

    def close_window(status: StreamStatus) -> None:
        raise StopRequested

    sink.show_status = close_window  # type: ignore[method-assign]
    begin = time.monotonic()
    summary = run_all(FakeSession(spec), [Stream(ScriptSource([threading.Event()]), [sink])])
    assert summary.shown == 0 and not summary.interrupted and time.monotonic() - begin < SLACK_S


@pytest.mark.parametrize("state", ["waiting", "inferring", "in a sink"])
def test_a_wish_ends_the_run_and_keeps_what_was_written(spec: ModelSpec, state: str) -> None:
    begun = threading.Event()

    def note(index: int) -> None:
        begun.set()
        time.sleep(0.05 if state == "in a sink" else 0)

    script = [lost(), threading.Event()] if state == "waiting" else list(range(100_000))
    sink = ListSink(before=note)
    if state == "waiting":
        begun.set()
    session = FakeSession(spec, 0.2 if state == "inferring" else 0.001)
    asked_at: list[float] = []

    def stop() -> bool:
        if begun.is_set() and not asked_at:
            asked_at.append(time.monotonic())
        return bool(asked_at)

    summary = run_all(session, [Stream(ScriptSource(script), [sink])], stop=stop)
    assert time.monotonic() - asked_at[0] < SLACK_S
    consistent(summary)
    assert summary.interrupted and sink.complete == [True]


def test_a_source_that_is_closed_under_its_reader_may_complain(spec: ModelSpec) -> None:
    class Complaining(ScriptSource):
        def __iter__(self) -> Iterator[Frame | StreamStatus]:
            yield from super().__iter__()
            raise SourceError("closed under me")

    summary = run_all(FakeSession(spec), [Stream(Complaining([0, threading.Event()]), [])], Limits(duration_s=0.3))
    assert summary.shown == 1


def test_several_streams_share_runs_of_the_model(spec: ModelSpec) -> None:
    batches: list[int] = []

    class Counting(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            batches.append(len(batch))
            return super().run(batch)

    sinks = [ListSink() for _ in range(3)]
    sources = [ListSource(count, size_hw=(40 + count, 64)) for count in (5, 30, 12)]
    summary = run_all(
        Counting(spec, 0.003), [Stream(*pair) for pair in zip(sources, [[s] for s in sinks], strict=True)]
    )
    consistent(summary)
    for sink, count in zip(sinks, (5, 30, 12), strict=True):
        assert [f.index for f in sink.frames] == list(range(count))
        assert {m.shape for m in sink.maps} == {(40 + count, 64)}
        assert sink.complete == [True] and sink.statuses[-1].state is State.ENDED
        for frame, classes in zip(sink.frames, sink.maps, strict=True):
            np.testing.assert_array_equal(classes, expected(spec, frame))
    assert summary.shown == 47 and max(batches) == 3 and sum(batches) == 47


def expected(spec: ModelSpec, frame: Frame) -> np.ndarray:
    alone = FakeSession(spec).run(fit_frame(frame.image, spec.preprocess)[None])[0]
    return restore_map(alone, spec.preprocess, (frame.image.shape[0], frame.image.shape[1]))


def test_a_model_of_batch_one_takes_streams_in_turn(spec: ModelSpec) -> None:
    order: list[int] = []
    sinks = [ListSink(before=lambda _, lane=lane: order.append(lane)) for lane in range(2)]  # type: ignore[misc]
    session = FakeSession(spec, 0.005, batch=1)
    summary = run_all(session, [Stream(ListSource(20), [sink]) for sink in sinks])
    assert summary.shown == session.calls == 40
    assert max(abs(order[:n].count(0) - order[:n].count(1)) for n in range(1, 40)) <= 6, "about in turn"


def test_a_model_of_another_fixed_batch_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(ModelError, match=r"takes 4 frames at a time.*Fix: export"):
        Pipeline(FakeSession(spec, batch=4), [Stream(ListSource(1))])


def test_a_slow_stream_does_not_hold_up_another(spec: ModelSpec) -> None:
    sinks = [ListSink(), ListSink()]
    streams = [Stream(ScriptSource([threading.Event()]), [sinks[0]]), Stream(ListSource(30), [sinks[1]])]
    summary = run_all(FakeSession(spec), streams, stop=lambda: len(sinks[1].frames) == 30)
    assert [stream.shown for stream in summary.streams] == [0, 30]


def test_a_live_stream_that_is_given_up_ends_alone(spec: ModelSpec) -> None:
    """What both gave is kept; that one was given up is said when the other has ended."""
    sinks, first = [ListSink(), ListSink()], threading.Event()

    def second() -> Iterator[int | threading.Event]:
        yield 0
        yield first
        yield from (1, 2)

    class Failing(ScriptSource):
        def __iter__(self) -> Iterator[Frame | StreamStatus]:
            yield from super().__iter__()
            first.set()
            raise SourceError("given up")

    sources = [Failing([0]), ScriptSource(second(), live=False)]
    pipeline = Pipeline(FakeSession(spec), [Stream(*pair) for pair in zip(sources, [[s] for s in sinks], strict=True)])
    with pytest.raises(SourceError, match="given up") as raised:
        list(pipeline.results())
    assert pipeline.given_up is raised.value
    assert [len(sink.frames) for sink in sinks] == [1, 3]
    assert [sink.complete for sink in sinks] == [[True], [True]] and all(s.closed.is_set() for s in sources)
    ended = sinks[0].statuses[-1]
    assert (ended.state, ended.detail) == (State.ENDED, "given up")
    assert pipeline.summary().shown == 4


def test_a_film_that_was_cut_ends_alone(spec: ModelSpec) -> None:
    sinks = [ListSink(), ListSink()]
    sources = [ScriptSource([0, SourceError("damaged")], live=False), ScriptSource([0, 1, 2], live=False)]
    with pytest.raises(SourceError, match="damaged"):
        run_all(FakeSession(spec), [Stream(*pair) for pair in zip(sources, [[s] for s in sinks], strict=True)])
    assert [len(sink.frames) for sink in sinks] == [1, 3]
    assert [sink.complete for sink in sinks] == [[True], [True]] and all(s.closed.is_set() for s in sources)


def test_what_a_live_source_passed_over_is_counted_as_dropped(spec: ModelSpec) -> None:
    summary = run_all(FakeSession(spec), [Stream(ScriptSource([0, 3, 4]), [ListSink()])])
    assert summary.captured == 5 == summary.shown + summary.dropped and summary.dropped >= 2


@pytest.mark.parametrize(
    ("limits", "captured", "indices"),
    [
        (Limits(stride=3), 4, [0, 3, 6, 9]),
        (Limits(max_frames=2), 2, [0, 1]),
        (Limits(max_frames=2, stride=4), 2, [0, 4]),
        (Limits(fps=200, stride=5), 2, [0, 5]),
    ],
)
def test_limits_on_a_file(spec: ModelSpec, limits: Limits, captured: int, indices: list[int]) -> None:
    sink = ListSink()
    summary = run_all(FakeSession(spec), [Stream(ListSource(10), [sink])], limits)
    consistent(summary)
    assert [frame.index for frame in sink.frames] == indices
    assert (summary.captured, summary.dropped) == (captured, 0)
    if not limits.max_frames:
        assert summary.streams[0].skipped == 10 - captured


def test_a_file_is_read_at_its_pace(spec: ModelSpec) -> None:
    summary = run_all(FakeSession(spec), [Stream(ListSource(11))], Limits(fps=25))
    assert summary.shown == 11 and summary.seconds >= 0.4
    assert summary.latency is not None and summary.latency.min_ms < 40, "what it waits for is not the frame's age"


@pytest.mark.parametrize(
    "bad", [{"stride": 0}, {"fps": 0.0}, {"fps": float("nan")}, {"max_frames": 0}, {"duration_s": -1.0}]
)
def test_limits_that_mean_nothing(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Limits(**bad)  # type: ignore[arg-type]


@given(fps=st.floats(0.5, 200), gaps=st.lists(st.floats(0, 0.2), min_size=1, max_size=200))
def test_a_pace_is_never_exceeded(fps: float, gaps: list[float]) -> None:
    """In any stretch of t seconds at most t fps + 2 frames pass: one at each end."""
    pace, now, passed = Pace(fps), 0.0, []
    for gap in gaps:
        now += gap
        if pace.admits(now):
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= (passed[last] - passed[first]) * fps + 2 + 1e-6


@pytest.mark.parametrize(("fps", "share"), [(30, 1.0), (15, 0.5), (20, 2 / 3), (10, 1 / 3), (100, 1.0)])
def test_a_jittery_camera_keeps_its_rate(fps: float, share: float) -> None:
    pace, chance = Pace(fps), np.random.default_rng(0)
    times = np.arange(300) / 30 + chance.uniform(-0.008, 0.008, 300)
    assert sum(pace.admits(t) for t in times) == pytest.approx(300 * share, abs=3)


def test_a_live_source_is_thinned_out(spec: ModelSpec) -> None:
    source = ListSource(40, live=True, before=lambda index: time.sleep(0.01))
    summary = run_all(FakeSession(spec), [Stream(source)], Limits(fps=25))
    consistent(summary)
    assert summary.streams[0].skipped > 0 and summary.captured + summary.streams[0].skipped == 40


@pytest.mark.parametrize(("infer_s", "write_s"), [(0.06, 0.0), (0.06, 0.03), (0.06, 0.11)])
def test_what_is_shown_live_is_never_old(spec: ModelSpec, infer_s: float, write_s: float) -> None:
    """Also with a slow sink: at most one interval and one inference; the least a queue would add is a write or more."""
    interval_s = 0.01
    ages: list[float] = []

    class Sink(ListSink):
        def write(self, frame: Frame, class_map: np.ndarray) -> None:
            ages.append((time.monotonic_ns() - frame.captured_ns) / 1e9)
            time.sleep(write_s)

    source = ListSource(10**6, live=True, before=lambda index: time.sleep(interval_s))
    session = FakeSession(spec, infer_s)
    pipeline = Pipeline(session, [Stream(source, [Sink()])], Limits(duration_s=3))
    for _ in pipeline.results():
        pass
    consistent(pipeline.summary())
    inference = pipeline.summary().stages["infer"]
    assert inference is not None and inference.p50_ms is not None
    assert sorted(ages)[len(ages) // 2] < interval_s + inference.p50_ms / 1e3 + 0.02


@given(
    seed=st.integers(0, 2**32),
    live=st.lists(st.booleans(), min_size=1, max_size=3),
    failing=st.sampled_from(["", "", "source", "model", "sink", "viewer"]),
    parallel=st.integers(1, 3),
    limits=st.sampled_from(
        [Limits(), Limits(stride=2), Limits(max_frames=4), Limits(fps=300), Limits(duration_s=0.02)]
    ),
)
@settings(max_examples=40, deadline=None)
def test_it_adds_up_whatever_happens(seed: int, live: list[bool], failing: str, parallel: int, limits: Limits) -> None:
    """Random delays everywhere and a failure somewhere: it ends, all is closed once, captured = shown + dropped."""
    spec = ModelSpec("tiny", Labels(("a", "b"), ((0, 0, 0), (1, 1, 1))), Preprocess((24, 32)))
    chance = random.Random(seed)
    failing_at = chance.randrange(12)

    def perhaps(name: str) -> Callable[[int], None]:
        def act(index: int) -> None:
            time.sleep(chance.choice([0, 0, 0.001, 0.004]))
            if failing == name and index >= failing_at:
                raise StopRequested if name == "viewer" else SinkError(name)

        return act

    class Session(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            perhaps("model")(self.calls)
            return super().run(batch)

    sources = [ListSource(12, is_live, perhaps("source")) for is_live in live]
    sinks = [ListSink(perhaps("viewer" if failing == "viewer" else "sink")) for _ in live]
    streams = [Stream(*pair) for pair in zip(sources, [[sink] for sink in sinks], strict=True)]
    pipeline = Pipeline(Session(spec, parallel=parallel), streams, limits)
    begin = time.monotonic()
    try:
        for _ in pipeline.results():
            pass
        failed = False
    except SinkError as error:
        assert str(error) == failing
        failed = True
    assert time.monotonic() - begin < SLACK_S
    summary = pipeline.summary()
    consistent(summary)
    for stream, sink, source in zip(summary.streams, sinks, sources, strict=True):
        assert stream.shown == len(sink.frames) and sink.complete == [not failed] and source.closed == 1
        indices = [frame.index for frame in sink.frames]
        assert indices == sorted(set(indices))
        if not source.info.live:
            assert stream.dropped_late == 0
    assert [t.name for t in threading.enumerate() if t.name.startswith("lfd-")] == []


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_model_that_hangs_does_not_keep_the_run(spec: ModelSpec, parallel: int) -> None:
    release, hanging = threading.Event(), threading.Event()

    class Hanging(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            if number_of(batch[0]) == 3:
                hanging.set()
                release.wait(60)
            return super().run(batch)

    sink = ListSink()
    pipeline = Pipeline(Hanging(spec, parallel=parallel), [Stream(ListSource(10), [sink])], stop=hanging.is_set)
    begin = time.monotonic()
    assert len(list(pipeline.results())) == len(sink.frames) <= 3
    assert time.monotonic() - begin < SLACK_S and pipeline.busy and pipeline.summary().interrupted
    release.set()
    for thread in threading.enumerate():
        if thread.name == "lfd-infer":
            thread.join(SLACK_S)
    assert not pipeline.busy


class Blinking(FakeSession):
    """All of class 0, but every fourth frame of class 1, by the number that the picture tells."""

    def __init__(self, spec: ModelSpec, **options: object) -> None:
        super().__init__(spec, rule=lambda image: np.full((24, 32), number_of(image) % 4 == 3, np.uint8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["class_map", "logits"])
@pytest.mark.parametrize("live", [False, True])
def test_smoothing_is_off_unless_asked_for(spec: ModelSpec, output: str, live: bool) -> None:
    session = Blinking(replace(spec, output=output))  # type: ignore[arg-type]
    for smoothing, seen in ((None, {0, 1}), (Smoothing(0.5), {0})):
        sink = ListSink(before=lambda index: time.sleep(0.002))
        source = ListSource(28, live, before=lambda index: time.sleep(0.02 if live else 0))
        summary = run_all(session, [Stream(source, [sink])], smoothing=smoothing)
        assert {int(value) for classes in sink.maps for value in np.unique(classes)} == seen
        stages = [*STAGES[:3], *(("smooth",) if smoothing else ()), *STAGES[3:]]
        assert list(summary.stages) == stages
        if smoothing:
            stage = summary.stages["smooth"]
            assert stage is not None and stage.count >= len(sink.frames)


def test_each_stream_has_its_own_state(spec: ModelSpec) -> None:
    """Frames of the other come in between, and share runs of the model."""
    sinks = [ListSink(), ListSink()]
    sources = [ListSource(20), ScriptSource([3] * 20, live=False)]
    streams = [Stream(source, [sink]) for source, sink in zip(sources, sinks, strict=True)]
    run_all(Blinking(spec), streams, smoothing=Smoothing(0.3))
    assert [{int(m.max()) for m in sink.maps} for sink in sinks] == [{0}, {1}]


def test_after_an_outage_and_at_another_size_smoothing_begins_anew(spec: ModelSpec) -> None:
    class Resized(ScriptSource):
        def __iter__(self) -> Iterator[Frame | StreamStatus]:
            for position, item in enumerate(super().__iter__()):
                larger = isinstance(item, Frame) and position >= 9
                yield replace(item, image=picture(3, (60, 80))) if larger else item  # type: ignore[arg-type]

    # The next frame comes when the last has been shown: a newer one would take the place of a result that still lies.
    waits = [threading.Event() for _ in range(5)]
    script = [0, waits[0], 1, waits[1], 3, waits[2], lost(), back(), 3, waits[3], 0, waits[4]]
    sink = ListSink(lambda index: waits[len(sink.maps)].set())
    run_all(Blinking(spec), [Stream(ScriptSource(script), [sink])], smoothing=Smoothing(60))
    assert [int(m.max()) for m in sink.maps] == [0, 0, 0, 1, 1]
    sink, script = ListSink(), [0, 1, 2, 3, 4, 0, 0, 0, 0, 3, 3]
    run_all(Blinking(spec), [Stream(Resized(script, live=False), [sink])], smoothing=Smoothing(60))
    assert [int(m.max()) for m in sink.maps] == [0] * 9 + [1, 1]


def test_the_scenes_truth_gives_the_flicker(spec: ModelSpec) -> None:
    from deploy.sources import open_source

    right = replace(spec, labels=STREET, preprocess=replace(spec.preprocess, size_hw=(48, 64)))
    for noisy, smoothing, flicker in ((0, None, 0.0), (1, None, 1.0), (1, Smoothing(1.0), 0.0)):
        session = FakeSession(right, rule=lambda image: np.full((48, 64), session.calls % 2 * noisy, np.uint8))  # noqa: B023
        stream = Stream(open_source("street:?size=48x64&frames=6"))
        summary = run_all(session, [stream], smoothing=smoothing)
        assert summary.streams[0].flicker == flicker
    assert run(FakeSession(spec), open_source("street:?size=48x64&frames=3"), []).streams[0].flicker is None


def test_a_smoothing_that_does_not_fit_is_refused_at_once(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match="take hysteresis"):
        Pipeline(FakeSession(spec), [Stream(ListSource(1))], smoothing=Smoothing(1.0, "exponential"))
