"""The benchmark on sessions whose answers and delays are known."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import bench, pictures, probe
from deploy.backends.fake import FakeSession
from deploy.bench import display_names, run_benchmark
from deploy.environment import Settings
from deploy.pictures import Pictures, spread, timing_frames
from deploy.probe import Probe, measure, memory_mb, warm_up
from deploy.record import BenchmarkResult
from deploy.timing import Timing
from lfd.data.base import Sample
from lfd.errors import DataError, LfdError, ModelError
from lfd.preprocess import Image
from lfd.spec import Labels, ModelSpec, Preprocess

LABELS = Labels(("dark", "light"), ((0, 0, 0), (255, 255, 255)))
SPEC = ModelSpec("fake", LABELS, Preprocess((8, 8)), provenance={"params": 7, "macs": True, "method": "lfd"})
FRAME: Image = np.zeros((8, 8, 3), np.uint8)


class Halves:
    """Pictures whose left half is dark and whose right half is light, labelled so."""

    labels = LABELS

    def __init__(self, count: int = 3, size_hw: tuple[int, int] = (8, 8), labels: Labels = LABELS) -> None:
        self.count, self.size_hw, self.labels = count, size_hw, labels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        image: Image = np.zeros((*self.size_hw, 3), np.uint8)
        image[:, self.size_hw[1] // 2 :] = 255
        image[0, 0, 0] = index % 256
        return Sample(image, (image[..., 1] > 0).astype(np.uint8), str(index))


class Local:
    """A Probe in this process, on the session that MODELS has for the file's name."""

    models: dict[str, FakeSession | LfdError]

    def __init__(self, path: Path) -> None:
        self._path, self._child = path, probe._Child()

    def ask(self, op: str, pictures: Sequence[Image] = (), **message: Any) -> tuple[dict[str, Any], list[Image]]:
        result = getattr(self._child, op)(message, list(pictures))
        return ({}, result) if isinstance(result, list) else (result, [])

    def load(self, frames: Sequence[Image], threads: int, backend: str | None = None) -> dict[str, Any]:
        return self.ask("load", frames, path=str(self._path), threads=threads, backend=backend)[0]

    def predict(self, image: Image) -> Image:
        return self.ask("predict", [image])[1][0]

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        pass


Bench = Callable[..., BenchmarkResult]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """Return run(teacher, student, ...) over fake sessions; files named teacher, a, b, c of growing size."""

    def go(*models: FakeSession | LfdError, pictures: Pictures | None = None, seconds: float = 0.02) -> BenchmarkResult:
        paths = [tmp_path / name for name in ("teacher", "a", "b", "c")[: len(models)]]
        for i, path in enumerate(paths):
            path.write_bytes(b"x" * (1000 if i == 0 else 100 * i))
        by_name = dict(zip([p.name for p in paths], models, strict=True))

        def open_session(path: Path, backend: str | None = None, threads: int = 0) -> FakeSession:
            model = by_name[path.name]
            if isinstance(model, LfdError):
                raise model
            return model

        monkeypatch.setattr(probe, "open_session", open_session)
        monkeypatch.setattr(bench, "Probe", Local)
        used = pictures or Pictures(Halves(), "halves@test")
        return run_benchmark(paths[1:], paths[0], used, Settings(seconds=seconds), lambda _: None)

    return go


def right(image: Image) -> Image:
    return (image[..., 1] > 127).astype(np.uint8)


def all_dark(image: Image) -> Image:
    return np.zeros(image.shape[:2], np.uint8)


# A sleep may last longer than asked, never shorter; on a busy machine much longer, so medians and wide bounds.


def test_a_constant_delay_is_reported_as_it_is() -> None:
    samples = measure(FakeSession(SPEC, 0.01), [FRAME], 25)
    alone, whole = Timing.of(samples.model_ms), Timing.of(samples.end_to_end_ms)
    assert min(samples.model_ms) >= 10.0
    assert alone.latency.p50_ms is not None
    assert alone.latency.p50_ms < 25.0
    assert alone.latency.p90_ms is None
    assert whole.latency.mean_ms >= alone.latency.mean_ms
    assert whole.images_per_s == pytest.approx(25e3 / sum(samples.end_to_end_ms))


def test_a_bimodal_delay_shows_in_the_tail_and_not_in_the_median() -> None:
    delays = ([0.002] * 4 + [0.05]) * 14
    timing = Timing.of(measure(FakeSession(SPEC, delays), [FRAME], len(delays)).model_ms)
    latency = timing.latency
    assert latency.count == 70
    assert latency.p50_ms is not None
    assert latency.p90_ms is not None
    assert 2.0 <= latency.p50_ms < 25.0
    assert latency.p90_ms >= 50.0
    assert latency.mean_ms >= 11.6
    assert timing.variation is not None
    assert timing.unsteady


def test_a_slow_start_is_warmed_away() -> None:
    session = FakeSession(SPEC, [0.03] * 6 + [0.002])
    durations, settled = warm_up(session, [FRAME], seconds=0.0, limit_s=20.0)
    assert settled
    assert len(durations) > 12
    assert sorted(durations[-5:])[2] < 20.0
    assert len(durations) == session.calls


def test_a_warm_up_ends_at_its_limit() -> None:
    delays = [0.001 * 1.3**i for i in range(30)]
    durations, settled = warm_up(FakeSession(SPEC, delays), [FRAME], seconds=0.0, limit_s=0.05)
    assert not settled
    assert 3 <= len(durations) < 30


def test_frames_take_turns_at_their_own_sizes() -> None:
    seen: list[int] = []

    def note(image: Image) -> Image:
        seen.append(int(image.max()))
        return all_dark(image)

    frames = [np.full((8 + i, 8, 3), i, np.uint8) for i in range(3)]
    samples = measure(FakeSession(SPEC, rule=note), frames, 5, start=2)
    assert seen == [2, 0, 1, 2, 0]
    assert len(samples.fit_ms) == len(samples.restore_ms) == 5
    assert min(samples.fit_ms) >= 0.0


def test_students_stand_against_the_teacher(run: Bench) -> None:
    result = run(FakeSession(SPEC, 0.02, right), FakeSession(SPEC, 0.002, all_dark), FakeSession(SPEC, 0.01, right))
    first, second = result.students
    assert [s.result.name for s in result.students] == ["a", "b"]
    assert 2.0 < first.versus.faster_alone.median <= 10.5
    assert first.versus.faster_alone.low <= first.versus.faster_alone.median <= first.versus.faster_alone.high
    assert first.versus.smaller == 10.0
    assert second.versus.smaller == 5.0
    assert result.teacher.accuracy is not None
    assert first.result.accuracy is not None
    assert second.result.accuracy is not None
    assert (result.teacher.accuracy.miou, result.teacher.accuracy.agreement) == (1.0, 1.0)
    assert first.result.accuracy.iou == (0.5, 0.0)
    assert first.result.accuracy.agreement == 0.5
    assert first.versus.miou_lost == 0.75
    assert first.versus.miou_kept == 0.25
    assert (second.versus.miou_lost, second.versus.miou_kept, second.result.accuracy.agreement) == (0.0, 1.0, 1.0)
    assert (first.result.params, first.result.macs, first.result.method) == (7, None, "lfd")
    assert result.frames.scored == 3
    assert result.frames.sizes_wh == ((8, 8),)
    assert len(first.result.single.rounds) == bench.ROUNDS
    assert first.result.single.model_alone.latency.count >= 11


def test_a_teacher_that_is_never_right_keeps_nothing_to_compare(run: Bench) -> None:
    result = run(FakeSession(SPEC, rule=lambda image: 1 - right(image)), FakeSession(SPEC, rule=right))
    assert result.students[0].versus.miou_lost == -1.0
    assert result.students[0].versus.miou_kept is None


def test_logits_are_timed_with_their_argmax(run: Bench) -> None:
    spec = ModelSpec("fake", LABELS, Preprocess((4, 8)), output="logits")
    result = run(FakeSession(SPEC, rule=right), FakeSession(spec, rule=right))
    assert result.students[0].result.accuracy is not None
    assert result.students[0].result.accuracy.agreement == 1.0


def test_one_failing_model_leaves_the_others(run: Bench) -> None:
    class Fragile(FakeSession):
        def run(self, batch: Image) -> Any:
            if self.calls > 12:
                raise ModelError("ran out of luck")
            return super().run(batch)

    result = run(FakeSession(SPEC), ModelError("x: broken"), FakeSession(SPEC), Fragile(SPEC))
    assert [s.result.name for s in result.students] == ["b"]
    assert [(f.name, f.message, f.exit_code) for f in result.failures] == [
        ("a", "x: broken", 4),
        ("c", "ran out of luck", 4),
    ]


def test_a_failure_names_no_folder(run: Bench, tmp_path: Path) -> None:
    result = run(FakeSession(SPEC), FakeSession(SPEC), ModelError(f"{tmp_path}/b: has no ModelSpec"))
    assert result.failures[0].message == "has no ModelSpec"


OTHER = ModelSpec("fake", Labels(("dark", "bright"), LABELS.colors), Preprocess((8, 8)))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([ModelError("teacher: broken"), FakeSession(SPEC)], "teacher: broken"),
        ([FakeSession(SPEC), ModelError("a: broken")], "a: broken"),
        ([FakeSession(SPEC), ModelError("one"), ModelError("two")], "a: one; b: two"),
        ([FakeSession(SPEC), FakeSession(OTHER)], "class 1: bright in the model, light in the teacher"),
        ([FakeSession(OTHER), FakeSession(OTHER)], "class 1: bright in the model, light in the data set halves@test"),
        (
            [FakeSession(SPEC), FakeSession(SPEC, rule=lambda i: np.full((8, 8), 9, np.uint8))],
            "class 9, but its ModelSpec names 2 classes",
        ),
    ],
)
def test_nothing_left_to_report_is_an_error(run: Bench, models: list[FakeSession | LfdError], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run(*models)


def test_the_built_in_scene_only_gives_frames_to_other_classes(run: Bench) -> None:
    result = run(FakeSession(OTHER), FakeSession(OTHER), pictures=Pictures(Halves(), "street@test", must_score=False))
    assert result.teacher.accuracy is None
    assert result.frames.scored == 0
    assert result.frames.scored_sha256 is None
    assert "no accuracy: street@test has other classes" in result.notes[0]


def test_a_broken_picture_ends_it(run: Bench) -> None:
    class Broken(Halves):
        def __getitem__(self, index: int) -> Sample:
            raise DataError("1.png: broken")

    with pytest.raises(DataError, match=r"1\.png: broken"):
        run(FakeSession(SPEC), FakeSession(SPEC), pictures=Pictures(Broken(), "x"))


def test_the_hash_is_that_of_the_pictures() -> None:
    assert timing_frames(Halves(3))[1] == timing_frames(Halves(3))[1]
    assert timing_frames(Halves(3))[1] != timing_frames(Halves(2))[1]
    assert timing_frames(Halves(3))[1] != timing_frames(Halves(3, (4, 16)))[1]


def test_frames_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(timing_frames(Halves(500))[0]) == pictures.MAX_FRAMES
    monkeypatch.setattr(pictures, "MAX_FRAME_BYTES", 8 * 8 * 3 * 5)
    assert len(timing_frames(Halves(500))[0]) == 5
    monkeypatch.setattr(pictures, "MAX_FRAME_BYTES", 1)
    assert len(timing_frames(Halves(500))[0]) == 1


@given(st.integers(1, 5000), st.one_of(st.none(), st.integers(1, 6000)))
def test_spread_takes_different_pictures_in_order(length: int, wanted: int | None) -> None:
    indices = spread(length, wanted)
    assert len(indices) == (length if wanted is None else min(length, wanted))
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert indices[-1] < length


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.onnx", "y/b.onnx"], ["a.onnx", "b.onnx"]),
        (["x/a.onnx", "y/a.onnx"], ["x/a.onnx", "y/a.onnx"]),
        (["x/a.onnx", "x/a.onnx", "b.onnx"], ["a.onnx (1)", "a.onnx (2)", "b.onnx"]),
    ],
)
def test_names_tell_models_apart_without_paths(paths: list[str], names: list[str]) -> None:
    assert display_names([Path(p) for p in paths]) == names


def test_a_fresh_process_has_its_own_memory() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("getrusage is the only source here")
    ballast = np.ones(400_000_000, np.uint8)
    ours = memory_mb()[1]
    with Probe(Path("unused")) as child:
        theirs = child.ask("memory")[0]["peak_mb"]
    assert ours is not None
    assert theirs < ours - ballast.nbytes / 2e6


def test_a_child_that_dies_is_named_with_the_cause() -> None:
    with Probe(Path("some.onnx")) as child:
        child.ask("memory")
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match=r"some\.onnx: its measuring process ended during memory \(killed by sig"):
            child.ask("memory")


def test_a_defect_in_the_child_shows_its_last_line() -> None:
    with Probe(Path("some.onnx")) as child, pytest.raises(ModelError, match=r"during dance \(exit code 1\): KeyError"):
        child.ask("dance")


def test_close_ends_the_child_and_may_be_called_twice() -> None:
    child = Probe(Path("some.onnx"))
    child.close()
    child.close()
    assert child._process.returncode is not None
