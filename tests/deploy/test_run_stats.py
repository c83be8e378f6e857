"""Counters, the lines on the terminal and the statistics file, by clocks of the test's own."""

from __future__ import annotations

import io
import json
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import stats as stats_module
from deploy.collect import Collected
from deploy.frames import Cause, State, StreamStatus
from deploy.run_console import Console, StatsFile
from deploy.run_summary import RunSummary, StreamSummary, open_descriptors, resident_mb, table, thread_count
from deploy.stats import Durations, StreamStats
from lfd.errors import SinkError, UsageError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def ns(self) -> int:
        return round(self.now * 1e9)


def lost(clock: Clock, cause: Cause = Cause.CLOSED, detail: str = "") -> StreamStatus:
    return StreamStatus(State.LOST, clock.ns(), cause, detail, retry_in_s=0.5)


def live(clock: Clock) -> StreamStatus:
    return StreamStatus(State.LIVE, clock.ns())


@given(kept=st.integers(1, 20), values=st.lists(st.floats(0, 1e6), max_size=60), since=st.integers(0, 60))
def test_durations_keep_the_latest(kept: int, values: list[float], since: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats_module, "KEPT_SAMPLES", kept)
        durations = Durations()
        for value in values:
            durations.add(value)
        assert durations.since(0) == values[-kept:]
        assert durations.since(since) == values[since:][-kept:]
        assert durations.last == (values[-1] if values else None) and durations.count == len(values)


def test_a_snapshot() -> None:
    clock = Clock()
    stats = StreamStats(clock.ns)
    assert stats.snapshot() == stats_module.StatsSnapshot(0, 0, 0, 0, State.LIVE, 0.0, None, None)
    for _ in range(11):
        stats.capture()
        captured_ns = clock.ns()
        clock.now += 0.1
        assert stats.show(captured_ns) == pytest.approx(100)
    stats.capture()
    stats.drop(1)
    stats.skip()
    stats.stages["infer"].add(7.0)
    now = stats.snapshot()
    assert (now.captured, now.shown, now.dropped_late, now.infer_ms) == (12, 11, 1, 7.0)
    assert now.fps == pytest.approx(10) and now.latency_ms == pytest.approx(100)
    clock.now += 2 * stats_module.RECENT_S
    assert stats.snapshot().fps == 0.0


def test_losses_and_returns_are_counted_once_each() -> None:
    clock = Clock()
    stats = StreamStats(clock.ns)
    for status in (
        live(clock),
        lost(clock, Cause.REFUSED),
        lost(clock, Cause.TIMED_OUT),
        live(clock),
        live(clock),
        lost(clock),
        StreamStatus(State.ENDED, clock.ns()),
    ):
        stats.change(status)
    assert dict(stats.losses) == {"refused": 1, "closed": 1}
    assert stats.snapshot().reconnects == 1 and stats.snapshot().state is State.ENDED


def console(clock: Clock, names: tuple[str, ...] = ("cam",), **options: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    stats = [StreamStats(clock.ns) for _ in names]
    return Console(names, stats, 100, options.get("progress", False), options.get("quiet", False), out, clock), out


def test_a_line_at_each_change() -> None:
    clock = Clock()
    shown, out = console(clock)
    shown.status(0, lost(clock, Cause.TIMED_OUT, "no picture for 5 s"))
    for _ in range(3):
        clock.now += 2
        shown.status(0, lost(clock, Cause.REFUSED))  # tried again, and still lost
        shown.tick()
    shown.status(0, live(clock))
    assert out.getvalue().splitlines() == [
        "cam: lost, timed out (no picture for 5 s); next try in 0.5 s",
        "cam: live again after 6.0 s",
    ]


def test_a_flapping_stream_does_not_flood_and_the_last_state_is_said() -> None:
    clock = Clock()
    shown, out = console(clock)
    for step in range(101):
        shown.status(0, lost(clock) if step % 2 == 0 else live(clock))
        clock.now += 0.02
        shown.tick()
    assert 2 <= len(out.getvalue().splitlines()) <= 4
    clock.now += 2
    shown.tick()
    assert out.getvalue().splitlines()[-1].startswith("cam: lost"), "the state it is in"


@pytest.mark.parametrize(("names", "lines"), [(("a",), 0), (("a", "b"), 1)])
def test_the_end_of_a_stream_is_said_when_others_go_on(names: tuple[str, ...], lines: int) -> None:
    clock = Clock()
    shown, out = console(clock, names)
    shown.status(0, StreamStatus(State.ENDED, clock.ns()))
    assert len(out.getvalue().splitlines()) == lines


def test_quiet_and_progress() -> None:
    clock = Clock()
    quiet, out = console(clock, quiet=True)
    quiet.status(0, lost(clock))
    quiet.tick()
    assert out.getvalue() == ""
    shown, out = console(clock, progress=True)
    clock.now += 1
    shown.tick()
    shown.tick()
    assert out.getvalue() == "\r\033[K0 of 100 frames, 0.0 a second"
    shown.end()
    assert out.getvalue().endswith("\r\033[K")


def test_a_trouble_is_said_once_also_when_quiet() -> None:
    out, troubles = io.StringIO(), [None, "disk", "disk", "disk"]
    shown = Console(["cam"], [StreamStats()], None, False, True, out, trouble=lambda: troubles.pop(0))
    for _ in range(3):
        shown.tick()
    shown.end()
    assert out.getvalue() == "warning: disk\n"


def test_stages_that_are_asked_for_stand_in_their_order() -> None:
    stats = StreamStats()
    stats.stages["infer"].add(7.0)
    stats.add_stage("score")
    stats.add_stage("smooth")
    assert list(stats.stages) == ["read", "fit", "infer", "smooth", "score", "restore", "write"]
    assert stats.stages["infer"].last == 7.0


def test_the_statistics_file(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "new" / "s.jsonl"
    stats = StreamStats(clock.ns)
    file = StatsFile(path, ["rtsp://***@cam"], [stats], every_s=1.0, overwrite=False, clock=clock)
    lines = []
    for step in range(5):
        for _ in range(2 * step):
            stats.capture()
            stats.show(clock.ns() - 5_000_000)
        clock.now += 0.5
        file.tick()
        lines.append(len(path.read_text().splitlines()))  # each is there at once
    assert lines == [0, 1, 1, 2, 2]
    file.close()
    first, second, last = map(json.loads, path.read_text().splitlines())
    age = datetime.now(timezone.utc) - datetime.fromisoformat(first["time"].replace("Z", "+00:00"))
    assert 0 <= age.total_seconds() < 600 and first["time"].endswith("Z")
    assert [line["streams"][0]["shown"] for line in (first, second, last)] == [2, 12, 20]
    assert [line["streams"][0]["fps"] for line in (first, second, last)] == [2.0, 10.0, 16.0]
    assert [line["streams"][0]["latency"]["count"] for line in (first, second, last)] == [2, 10, 8]
    stream = second["streams"][0]
    assert stream["source"] == "rtsp://***@cam" and stream["state"] == "live" and stream["latency"]["p50_ms"] is None
    assert last["streams"][0]["latency"]["max_ms"] == pytest.approx(5.0)
    assert last["rss_mb"] > 1 and last["threads"] >= 1 and last["descriptors"] >= 3 and last["seconds"] == 2.5
    with pytest.raises(UsageError, match="exists"):
        StatsFile(path, [], [], 1.0, overwrite=False)


def test_a_full_disk_is_said_in_one_line() -> None:
    file = StatsFile(Path("/dev/full"), ["a"], [StreamStats()], 0.0, overwrite=True)
    with pytest.raises(SinkError, match=r"/dev/full: cannot be written .*Fix: free space"):
        file.tick()
    with pytest.raises(SinkError):
        file.close()
    file.close()


def test_a_table_has_a_block_a_stream() -> None:
    stats = StreamStats()
    stats.capture()
    stats.show(time.monotonic_ns())
    stats.skip()
    stats.change(StreamStatus(State.LOST, 0, Cause.CLOSED))
    blocks = (StreamSummary.of(stats, 2.0, 0.5, 0.0123), StreamSummary.of(StreamStats(), 2.0, None))
    collected = Collected("c", 3, 4_500_000, 1, None)
    summary = RunSummary(blocks, 2.0, 10.0, 11.0, 7, interrupted=False, collected=collected)
    lines = table(summary, ["tiny on a", "tiny on b"]).splitlines()
    for line in (
        "tiny on a",
        "frames   1 captured, 1 shown, 0 dropped; 1 skipped",
        "lost     1 times (1 closed), 0 times back",
        "mIoU     50.00 % against the scene's truth",
        "flicker  1.23 % of the pixels whose truth stays, from frame to frame",
        "kept     3 frames, 4.5 MB in c; 1 missed, the disk was behind",
        "tiny on b",
        "frames   0 captured, 0 shown, 0 dropped",
        "memory   10 MB at the start, 11 MB at the end, 7 threads",
    ):
        assert lines.count(line) == 1
    record = summary.record([{"source": "a"}, {"source": "b"}])
    assert json.loads(json.dumps(record, allow_nan=False))["streams"][0]["dropped"] == 0
    assert record["collected"]["kept"] == 3 and record["streams"][1]["flicker"] is None
    assert (summary.captured, summary.shown, summary.dropped, summary.fps) == (1, 1, 0, 0.5)


def test_what_the_system_says() -> None:
    memory, descriptors = resident_mb(), open_descriptors()
    assert memory is not None and 10 < memory < 100_000 and thread_count() >= 1
    with open("/dev/null") as _:  # noqa: PTH123
        assert open_descriptors() == (descriptors or 0) + 1


def test_an_outage_too_short_to_be_said_does_not_lengthen_the_next() -> None:
    clock = Clock()
    shown, out = console(clock)
    for after_s, status in ((0, lost), (2, live), (0.2, lost), (0.2, live), (1000, lost), (5, live)):
        clock.now += after_s
        shown.tick()
        shown.status(0, status(clock))
    said = [line.partition(";")[0] for line in out.getvalue().splitlines()]
    assert said == [
        "cam: lost, closed",
        "cam: live again after 2.0 s",
        "cam: lost, closed",
        "cam: live again after 5.0 s",
    ]
