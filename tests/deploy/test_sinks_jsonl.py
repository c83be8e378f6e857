from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sink_doubles import STATS, classes, files_up_to, frame, lost, make, nothing_left

from deploy.frames import Frame, State, StreamStatus
from deploy.sinks.jsonl import class_counts
from lfd.errors import SinkError
from lfd.spec import ModelSpec


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_counts_are_those_of_numpy(class_map: np.ndarray) -> None:
    np.testing.assert_array_equal(class_counts(class_map), np.bincount(class_map.ravel(), minlength=256))


@given(st.integers(1, 300), st.integers(1, 300))
def test_counts_of_long_runs(height: int, width: int) -> None:
    class_map = np.repeat((np.arange(height) // 7 % 5).astype(np.uint8)[:, None], width, axis=1)
    np.testing.assert_array_equal(class_counts(class_map), np.bincount(class_map.ravel(), minlength=256))


def test_a_line_a_frame(tmp_path: Path, spec: ModelSpec) -> None:
    class_map = np.zeros((240, 320), np.uint8)
    class_map[:60] = 2
    class_map[60:90] = 255  # void
    path = tmp_path / "new" / "a.jsonl"
    sink = make(path, spec)
    captured = time.monotonic_ns() - 50_000_000
    before = time.time() - 0.05
    sink.write(Frame(np.zeros((240, 320, 3), np.uint8), 7, captured, "Straße"), class_map)
    assert not path.exists()
    sink.close(True)
    (line,) = lines(path)
    assert abs(datetime.fromisoformat(line["time"].replace("Z", "+00:00")).timestamp() - before) < 0.05
    assert line["time"].endswith("Z") and datetime.now(timezone.utc).isoformat()[:10] == line["time"][:10]
    assert 50 <= line["latency_ms"] < 150
    del line["time"], line["latency_ms"]
    assert line == {
        "event": "frame",
        "index": 7,
        "name": "Straße",
        "state": "live",
        "classes": {"blue": 0.625, "red": 0.25},
        "infer_ms": 19.5,
        "dropped": 3,
        "reconnects": 1,
    }
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]


def test_a_line_a_change_of_the_status(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(tmp_path / "a.jsonl", spec, live=True)
    live = StreamStatus(State.LIVE, 0)
    for status in [live, live, *[lost()] * 20, lost(attempt=2), lost(attempt=2), StreamStatus(State.LIVE, 9)]:
        sink.show_status(status)
    sink.close(True)
    told = lines(tmp_path / "a.jsonl")
    assert [(line["event"], line["state"], line["attempt"]) for line in told] == [
        ("status", "lost", 1),
        ("status", "lost", 2),
        ("status", "live", 0),
    ]
    assert {k: v for k, v in told[0].items() if k not in ("time", "event", "state", "attempt")} == {
        "cause": "timed out",
        "detail": "no picture",
        "reconnects": 0,
        "retry_in_s": 2.0,
    }


def test_a_frames_state_is_that_of_its_place(tmp_path: Path, spec: ModelSpec) -> None:
    """The reader is ahead: by its count the stream has ended."""
    sink = make(tmp_path / "a.jsonl", spec, stats=lambda: replace(STATS, state=State.ENDED))
    for item in (0, lost(), 1, StreamStatus(State.LIVE, 9), 2, StreamStatus(State.ENDED, 10)):
        if isinstance(item, int):
            sink.write(frame(item), classes(item))
        else:
            sink.show_status(item)
    sink.close(True)
    states = [line["state"] for line in lines(tmp_path / "a.jsonl")]
    assert states == ["live", "lost", "lost", "live", "live", "ended"]


@pytest.mark.parametrize("complete", [True, False])
def test_a_live_file_can_be_followed_and_stays(tmp_path: Path, spec: ModelSpec, complete: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old\n")
    sink = make(f"{path}?every=2", spec, live=True)
    for index in range(5):
        sink.write(frame(index), classes(index))
        assert [line["index"] for line in lines(path)] == list(range(0, index + 1, 2))
    sink.close(complete)
    assert len(lines(path)) == 3


def test_a_failed_run_leaves_no_lines(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(tmp_path / "a.jsonl", spec)
    sink.write(frame(0), classes(0))
    sink.close(False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("live", [False, True])
def test_a_full_disk_leaves_no_half_line(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    with nothing_left():
        sink = make(tmp_path / "a.jsonl", spec, live)
        with files_up_to(1000), pytest.raises(SinkError, match=r"a\.jsonl: cannot be written \(no room|File too large"):
            for index in range(100):
                sink.write(frame(index), classes(index))
        sink.close(False)
    if live:
        assert len(lines(tmp_path / "a.jsonl")) >= 3
    else:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("live", [False, True])
def test_a_folder_that_goes_away(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    with nothing_left():
        sink = make(tmp_path / "d" / "a.jsonl", spec, live)
        sink.write(frame(0), classes(0))
        shutil.rmtree(tmp_path / "d")
        with pytest.raises(SinkError, match="was removed while it was written"):
            sink.write(frame(1), classes(1))
        sink.close(False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, spec: ModelSpec) -> None:
    (tmp_path / "f").write_bytes(b"a file")
    sink = make(tmp_path / "f" / "a.jsonl", spec)
    with pytest.raises(SinkError, match="cannot be written"):
        sink.write(frame(0), classes(0))
    sink.close(False)
