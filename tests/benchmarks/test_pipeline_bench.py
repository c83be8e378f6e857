"""What needs no quiet machine of the benchmarks of the pipeline."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import live, pipeline
from benchmarks.live import PacedSession, slope, watch
from benchmarks.pipeline import cost, one_round, our_cases, resized
from benchmarks.pipeline_table import Case, Cost, markdown, summarise
from benchmarks.rivals import predict_client
from benchmarks.rivals.opencv_loop import loop
from benchmarks.rivals.predict_client import Ultralytics
from deploy.backends.fake import FakeSession
from lfd.errors import LfdError
from lfd.spec import Labels, ModelSpec, Preprocess

FRAMES = 6
COLORS = np.zeros((256, 3), np.uint8)


def session(delay_s: float = 0.0) -> FakeSession:
    labels = Labels(("a", "b"), ((0, 0, 0), (255, 255, 255)))
    return FakeSession(ModelSpec("fake", labels, Preprocess((18, 24))), delay_s)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (96, 64))
    for index in range(FRAMES):
        writer.write(np.full((64, 96, 3), 40 * index, np.uint8))
    writer.release()
    return str(path)


def size_and_frames(path: Path) -> tuple[int, int, int]:
    capture, frames = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        frames += 1
    found = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), frames
    capture.release()
    return found


def test_a_film_at_another_size_has_every_frame(film: str, tmp_path: Path) -> None:
    assert size_and_frames(Path(resized(film, tmp_path / "other.mp4", (64, 48)))) == (64, 48, FRAMES)


@pytest.mark.parametrize("written", [False, True])
def test_the_loop_runs_the_model_on_every_frame(film: str, tmp_path: Path, written: bool) -> None:
    model, out = session(), tmp_path / "loop.mp4"
    assert loop(film, model.run, (18, 24), COLORS, out if written else None) == model.calls == FRAMES
    assert out.exists() is written
    if written:
        assert size_and_frames(out) == (96, 64, FRAMES)


def test_the_loop_says_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(LfdError, match="cannot read"):
        loop(str(tmp_path / "none.mp4"), session().run, (18, 24), COLORS)


def test_every_case_of_ours_takes_the_whole_film(film: str, tmp_path: Path) -> None:
    films = {"": film, "64x48 ": resized(film, tmp_path / "hd.mp4", (64, 48))}
    cases = our_cases(session(), FakeSession(session().spec, parallel=2), films, tmp_path)
    found = one_round(cases, backwards=True)
    assert list(found) == list(reversed(cases))
    assert {of["frames"] for of in found.values()} == {FRAMES}
    assert all(of["wall_ms"] > 0 and of["others_cores"] >= 0 for of in found.values())
    assert size_and_frames(tmp_path / "loop.mp4") == (96, 64, FRAMES)
    assert size_and_frames(tmp_path / "pipeline.mp4") == (192, 128, FRAMES)  # enlarged for its legend
    alone = {name: case.alone for name, case in cases.items()}
    assert {name for name, of in alone.items() if of is None} == {"session alone", "decode alone", "64x48 decode alone"}
    assert {name for name, case in cases.items() if case.used != case.alone} == {
        "session alone, side by side",
        *(f"{size}pipeline, {sink}" for size in ("", "64x48 ") for sink in ("null", "overlay")),
        "pipeline, film",
    }
    assert markdown(summarise(cases, [found])).count("\n") == len(cases) + 1


@given(
    rounds=st.lists(st.tuples(*[st.floats(0.1, 100)] * 4), min_size=1, max_size=7),
)
def test_a_summary_holds_each_case_against_its_session_of_the_same_round(
    rounds: list[tuple[float, float, float, float]],
) -> None:
    rows = [
        {
            "alone": {"wall_ms": a, "cpu_ms": 2 * b},
            "used": {"wall_ms": a / 2, "cpu_ms": b},
            "piped": {"wall_ms": a + c, "cpu_ms": b + d},
        }
        for a, b, c, d in rounds
    ]
    nothing = partial(Cost, 1, 1.0, 1.0)
    cases = {"alone": Case(nothing), "used": Case(nothing), "piped": Case(nothing, "alone", "used")}
    summary = summarise(cases, rows)
    assert set(summary["alone"]) == {"wall_ms", "cpu_ms"}
    for key, place in (("outside_ms", 2), ("cpu_outside_ms", 3)):
        values = [taken[place] for taken in rounds]
        assert summary["piped"][key]["min"] == pytest.approx(min(values), rel=1e-6, abs=1e-9)
        assert summary["piped"][key]["median"] == pytest.approx(float(np.median(values)), rel=1e-6, abs=1e-9)
    kept = [a / (a + c) for a, _, c, _ in rounds]
    assert summary["piped"]["kept"]["max"] == pytest.approx(max(kept), rel=1e-6)


def test_cost_is_a_frame_s_share_and_counts_sleep_as_wall_time_only() -> None:
    def doze() -> int:
        time.sleep(0.2)
        return 10

    found = cost(doze)
    assert found.frames == 10
    assert found.wall_ms >= 20
    assert found.cpu_ms < 10


def test_cases_of_another_process_are_taken_as_they_come() -> None:
    found = one_round({"theirs": Case(lambda: Cost(3, 2.0, 1.0), "alone")}, backwards=False)["theirs"]
    assert (found["frames"], found["wall_ms"], found["cpu_ms"]) == (3, 2.0, 1.0)


def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    script = tmp_path / "server.py"
    script.write_text(text, encoding="utf-8")
    monkeypatch.setattr(predict_client, "SCRIPT", script)


def test_the_other_process_is_told_the_film_and_asked_case_by_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, film: str
) -> None:
    served(
        monkeypatch,
        tmp_path,
        "import json, sys\n"
        "print(json.dumps({'network': 'n', 'told': [sys.argv[1], *sys.argv[3:]]}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'frames': len(line.strip()), 'wall_ms': 2.0, 'cpu_ms': 1.0}), flush=True)\n",
    )
    with Ultralytics(Path(sys.executable), film, (360, 480), 2) as rival:
        assert rival.about == {"network": "n", "told": [film, "384", "480", "2"]}
        assert Cost(**rival.ask("null")) == Cost(4, 2.0, 1.0)
        assert set(pipeline.their_cases(rival)) >= {"Ultralytics: session alone", "Ultralytics: predict, film"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit('no module named ultralytics')", "no module named ultralytics"),
        ("", "it said nothing"),
    ],
)
def test_another_process_that_ends_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, film: str, text: str, said: str
) -> None:
    served(monkeypatch, tmp_path, text)
    with pytest.raises(LfdError, match=said):
        Ultralytics(Path(sys.executable), film, (18, 24), 0)


def test_a_python_that_is_not_there_is_one_line(film: str, tmp_path: Path) -> None:
    with pytest.raises(LfdError, match="cannot be run"):
        Ultralytics(tmp_path / "python", film, (18, 24), 0)


@given(
    rate=st.floats(-50, 50),
    offset=st.floats(10, 1000),
    times=st.lists(st.integers(0, 600), min_size=3, max_size=40, unique=True),
)
def test_slope_of_a_line_is_its_own(rate: float, offset: float, times: list[int]) -> None:
    found = slope([(float(t), offset + rate * t / 60) for t in times], 0.0)
    assert found is not None
    assert found["mb_per_min"] == pytest.approx(rate, abs=1e-6)
    assert found["stderr"] == pytest.approx(0, abs=1e-4)


def test_slope_leaves_out_the_beginning_and_wants_three() -> None:
    climbing = [(float(t), float(min(t, 10))) for t in range(30)]
    late = slope(climbing, 10.0)
    assert late is not None and late["mb_per_min"] == pytest.approx(0)
    assert slope(climbing, 27.5) is None


def test_a_paced_session_takes_its_time_and_leaves_the_model_open() -> None:
    model = session()
    with PacedSession(model, 15.0) as paced:
        paced.run(np.zeros((1, 18, 24, 3), np.uint8))
        assert isinstance(paced, PacedSession)
        assert min(paced.run_ms.since(0)) >= 15.0
    assert not model.closed


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(live, "MEMORY_EVERY_S", 0.1)
    yield


@pytest.mark.usefixtures("short_memory")
def test_the_pipeline_s_drops_add_up_and_it_keeps_up() -> None:
    found = watch(session(), "street:?size=48x64&fps=50", 60.0, 2.0, live.piped)
    counts = found["counts"]
    assert counts["captured"] == counts["shown"] + counts["dropped"]
    assert counts["shown"] == found["taken_by_the_sink"]
    assert 0 <= found["given_by_the_source"] - counts["captured"] <= 1
    assert counts["dropped"] > counts["shown"]
    assert found["allowed_ms"] >= 80.0
    assert found["memory"] is not None


def test_a_queue_falls_behind() -> None:
    found = watch(session(), "street:?size=48x64&fps=50", 60.0, 2.0, live.queued)
    counts = found["counts"]
    assert counts["waiting"] > 0
    assert counts["captured"] == found["given_by_the_source"] == counts["shown"] + counts["waiting"]
    assert counts["shown"] == found["taken_by_the_sink"]
    assert found["last_age_ms"] > 2 * found["age"]["min_ms"]
