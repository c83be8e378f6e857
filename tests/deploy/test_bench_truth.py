"""What the harness reports of models whose every delay is written down: within 1 % of the truth, here exactly.

Time is a scripted clock's, so nothing depends on the machine; the truths are closed forms, not our own output.
"""

from __future__ import annotations

import numpy as np
import pytest
from bench_doubles import FRAME, ScriptedClock, ScriptedSession
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench import loops
from deploy.bench.loops import SystemClock, measure, measure_batches, measure_stream, warm_up
from deploy.bench.scenarios import Offline, SingleStream, Stream, WarmUp, queue
from deploy.timing import Timing
from lfd.errors import ModelError
from lfd.preprocess import Image

ONE_PER_CENT = 0.01
STALL = ([10.0] * 50 + [200.0] + [10.0] * 49) * 20
"""One stall in a hundred."""


def single(delays_ms: list[float]) -> SingleStream:
    clock = ScriptedClock()
    samples = measure(ScriptedSession(clock, delays_ms), [FRAME], len(delays_ms), clock=clock)
    return SingleStream.of(WarmUp((), True), [samples])


def stream(delays_ms: list[float], fps: float, seconds: float) -> Stream:
    clock = ScriptedClock()
    found = measure_stream(ScriptedSession(clock, delays_ms), [FRAME], fps, seconds, clock)
    return Stream.of(fps, *found)


def near(value: float) -> object:
    return pytest.approx(value, rel=ONE_PER_CENT)


@pytest.mark.parametrize("part", ["model_alone", "end_to_end"])
@pytest.mark.parametrize(
    ("delays", "p50", "p90", "p99", "mean", "slowest", "drift"),
    [
        ([10.0] * 1000, 10, 10, 10, 10, 10, 0),
        (([2.0] * 4 + [50.0]) * 200, 2, 50, 50, 11.6, 50, 0),
        ([10 + 2 * i / 1999 for i in range(2000)], 11, 11.8, 11.98, 11, 12, 11.5 / 10.5 - 1),
        (STALL, 10, 10, 10, 11.9, 200, 0),
    ],
    ids=["constant", "bimodal", "drifting", "one stall in a hundred"],
)
def test_single_reports_the_truth(
    part: str, delays: list[float], p50: float, p90: float, p99: float, mean: float, slowest: float, drift: float
) -> None:
    timing: Timing = getattr(single(delays), part)
    latency = timing.latency
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (near(p50), near(p90), near(p99))
    assert (latency.mean_ms, latency.max_ms) == (near(mean), near(slowest))
    assert timing.images_per_s == near(1e3 / mean)
    assert timing.drift == pytest.approx(drift, abs=1e-3)
    assert timing.variation == near(float(np.std(delays, ddof=1) / np.mean(delays)))
    assert latency.count == len(delays)


def test_each_stage_is_charged_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ScriptedClock()
    fit, restore = loops.fit_frame, loops.restore_map

    def slow_fit(*args: object) -> Image:
        clock.advance(3)
        return fit(*args)  # type: ignore[arg-type]

    def slow_restore(*args: object) -> Image:
        clock.advance(2)
        return restore(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loops, "fit_frame", slow_fit)
    monkeypatch.setattr(loops, "restore_map", slow_restore)
    samples = measure(ScriptedSession(clock, [10.0]), [FRAME], 4, clock=clock)
    assert samples.fit_ms == (3.0,) * 4
    assert samples.model_ms == (10.0,) * 4
    assert samples.restore_ms == (2.0,) * 4
    batched = measure_batches(ScriptedSession(clock, [30.0]), [FRAME], 5, 2, clock=clock)
    assert (batched.fit_ms, batched.model_ms, batched.restore_ms) == ((15.0,) * 2, (30.0,) * 2, (10.0,) * 2)
    found = measure_stream(ScriptedSession(clock, [10.0]), [FRAME], 20, 1, clock)
    assert found.samples.end_to_end_ms[0] == 15.0
    assert Stream.of(20, *found).model_alone.p50_ms == 10.0  # type: ignore[union-attr]


def test_a_stream_shows_the_stalls_whole_queue_and_a_naive_loop_hides_it() -> None:
    naive = single(STALL).end_to_end.latency
    assert naive.p99_ms == 10.0
    # 10 ms of work every 20 ms: behind a stall of 200 ms the waiting frames take 200, 190, 180 ... 20, 10 ms.
    truth = sorted([*range(20, 201, 10), *[10] * 81])
    found = stream(STALL, fps=50, seconds=40)
    assert found.end_to_end is not None
    assert found.end_to_end.count == 2000
    latency = found.end_to_end
    assert (latency.p50_ms, latency.p90_ms) == (near(10), near(truth[89]))
    assert (latency.p95_ms, latency.p99_ms) == (near(truth[94]), near(truth[98]))
    assert latency.p99_ms == near(190)
    assert latency.mean_ms == near(sum(truth) / 100)
    assert latency.max_ms == near(200)
    assert found.missed == sum(ms > 20 for ms in truth) * 20
    assert found.unserved == 0
    assert found.load == near(11.9 / 20)
    assert found.keeps_up
    assert found.images_per_s == near(50)
    assert found.model_alone == found.end_to_end  # nothing but the model takes time here


@pytest.mark.parametrize("fps", [1, 24, 29.97, 30, 60])
def test_a_model_that_keeps_up_waits_for_nothing(fps: float) -> None:
    found = stream([10.0], fps, 10)
    assert found.end_to_end is not None
    assert found.end_to_end.p50_ms == found.end_to_end.max_ms == near(10)
    assert set(found.wait_ms) == {0.0}
    assert found.missed == 0
    assert found.images_per_s == near(fps)


def test_an_overloaded_model_is_stopped_and_said_not_to_keep_up() -> None:
    # 50 ms of work every 20 ms: frame i is done 50 (i + 1) ms after the first arrival, 30 i + 50 ms after its own.
    found = stream([50.0], fps=50, seconds=4)
    assert not found.keeps_up
    assert found.load == near(2.5)
    assert found.images_per_s == near(20)
    served = len(found.wait_ms)
    assert [w + 50 for w in found.wait_ms] == pytest.approx([30 * i + 50 for i in range(served)])
    # 200 arrivals in 4 s, and 4 s more to work them off: 8 s at 20 a second.
    assert served == near(8 * 20)
    assert served + found.unserved == 200
    assert found.missed == 200
    assert found.end_to_end is None
    assert found.model_alone is None


def test_a_queue_that_grows_has_no_percentiles_even_when_all_were_served() -> None:
    # 25 ms of work every 20 ms: the last of 200 waits a second more than the first, and of 400 it would be two.
    found = stream([25.0], fps=50, seconds=4)
    assert found.unserved == 0
    assert found.load == near(1.25)
    assert found.wait_ms[-1] == near(199 * 5)
    assert (found.keeps_up, found.end_to_end, found.model_alone) == (False, None, None)


@given(st.lists(st.floats(0.01, 500), min_size=1, max_size=200), st.floats(1, 200))
def test_the_queue_is_that_of_the_first_principles(services: list[float], period: float) -> None:
    done, truth = 0.0, []
    for index, service in enumerate(services):
        done = max(done, index * period) + service
        truth.append(done - index * period)
    assert queue(services, period) == pytest.approx(truth, rel=1e-6, abs=1e-6)


def test_offline_counts_pictures_not_batches() -> None:
    clock = ScriptedClock()
    samples = measure_batches(ScriptedSession(clock, [20.0]), [FRAME] * 3, 4, 25, clock=clock)
    found = Offline.of(4, [samples])
    assert found.end_to_end.images_per_s == near(200)
    assert found.end_to_end.latency.p50_ms == 20.0
    assert found.end_to_end.latency.count == 25


def test_batches_go_round_the_frames() -> None:
    seen: list[list[int]] = []

    class Noting(ScriptedSession):
        def run(self, batch: Image) -> Image:
            seen.append([int(frame.max()) for frame in batch])
            return super().run(batch)  # type: ignore[no-any-return]

    clock = ScriptedClock()
    frames = [np.full((8, 8, 3), i, np.uint8) for i in range(3)]
    measure_batches(Noting(clock, [1.0]), frames, 2, 3, start=1, clock=clock)
    assert seen == [[1, 2], [0, 1], [2, 0]]


def test_a_warm_up_lasts_until_the_median_rests() -> None:
    clock = ScriptedClock()
    durations, settled = warm_up(ScriptedSession(clock, [50.0] * 20 + [10.0]), [FRAME], 1.1, 60, clock)
    assert settled
    assert len(durations) >= 30  # the last quarter's median and that of the quarter before are both 10 ms
    assert sum(durations) >= 1100


def test_a_warm_up_that_never_rests_ends_at_its_limit() -> None:
    clock = ScriptedClock()
    durations, settled = warm_up(ScriptedSession(clock, [1.5**i for i in range(40)]), [FRAME], 0.1, 3, clock)
    assert not settled
    assert sum(durations[:-1]) < 3000 <= sum(durations)


def test_the_collector_rests_while_the_clock_runs_and_works_after() -> None:
    import gc

    states = []

    class Looking(ScriptedSession):
        def run(self, batch: Image) -> Image:
            states.append(gc.isenabled())
            return super().run(batch)  # type: ignore[no-any-return]

    clock = ScriptedClock()
    measure(Looking(clock, [1.0]), [FRAME], 2, clock=clock)
    assert states == [False, False]
    assert gc.isenabled()

    class Failing(ScriptedSession):
        def run(self, batch: Image) -> Image:
            raise ModelError("broken")

    with pytest.raises(ModelError):
        measure(Failing(clock, [1.0]), [FRAME], 1, clock=clock)
    assert gc.isenabled()


def test_the_systems_clock_waits_and_never_wakes_early() -> None:
    clock = SystemClock()
    for ahead_ms in (0.0, 0.3, 4.0):
        due = clock.now_ns() + round(ahead_ms * 1e6)
        clock.wait_until(due)
        assert clock.now_ns() >= due
    before = clock.now_ns()
    clock.wait_until(before - 10**9)
    assert clock.now_ns() - before < 10**9
