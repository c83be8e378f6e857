"""The benchmark on sessions whose answers are known."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from bench_doubles import LABELS, SPEC, Local
from hypothesis import given
from hypothesis import strategies as st

from deploy.backends.fake import FakeSession
from deploy.bench import benchmark, entry, pictures, sweep
from deploy.bench.benchmark import run_benchmark
from deploy.bench.entry import FEWEST_ROUNDS, Entry, rounds_of
from deploy.bench.loops import measure
from deploy.bench.memory import memory_mb
from deploy.bench.models import display_names, is_checkpoint, model_file
from deploy.bench.pictures import Pictures, Shown, spread, timing_frames
from deploy.bench.probe import Probe, ProcessEndedError, Request, prepare_file
from deploy.bench.record import BenchmarkResult, from_json, to_json
from deploy.environment import Settings
from deploy.report.pages import text_table
from lfd.data.base import Sample
from lfd.errors import DataError, LfdError, ModelError
from lfd.preprocess import Image
from lfd.spec import Labels, ModelSpec, Preprocess


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


Bench = Callable[..., BenchmarkResult]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """Return run(teacher, student, ...) over fake sessions; files named teacher, a, b, c of growing size."""

    def go(
        *models: FakeSession | LfdError,
        pictures: Pictures | None = None,
        seconds: float = 0.02,
        probe: type[Local] = Local,
        **asked: Any,
    ) -> BenchmarkResult:
        paths = [tmp_path / name for name in ("teacher", "a", "b", "c")[: len(models)]]
        for i, path in enumerate(paths):
            path.write_bytes(b"x" * (1000 if i == 0 else 100 * i))
        by_name = dict(zip([p.name for p in paths], models, strict=True))

        def open_session(path: Path, backend: str | None = None, threads: int = 0) -> FakeSession:
            model = by_name[path.name]
            if isinstance(model, LfdError):
                raise model
            return model

        monkeypatch.setattr("deploy.bench.probe.open_session", open_session)
        monkeypatch.setattr("deploy.bench.probe.choose_backend", lambda path, backend: "ort")
        monkeypatch.setattr(benchmark, "Probe", probe)
        monkeypatch.setattr(entry, "MOST_ROUNDS", FEWEST_ROUNDS)  # however fast this machine is just now
        monkeypatch.setattr(sweep, "Probe", probe)
        used = pictures or Pictures(Halves(), "halves@test")
        said = asked.pop("say", lambda text: None)
        result, shown = run_benchmark(paths[1:], paths[0], used, Settings(seconds=seconds, **asked), said)
        go.shown = shown  # type: ignore[attr-defined]
        return result

    return go


def right(image: Image) -> Image:
    return (image[..., 1] > 127).astype(np.uint8)


def all_dark(image: Image) -> Image:
    return np.zeros(image.shape[:2], np.uint8)


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
    assert len(first.result.single.rounds) == FEWEST_ROUNDS
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
    ballast = np.ones(200_000_000, np.uint8)
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


def test_every_scenario_is_in_the_record(run: Bench) -> None:
    models = FakeSession(SPEC, 0.002, right), FakeSession(SPEC, 0.001, right)
    result = run(*models, batches=(1, 4), streams=(200.0,), seconds=0.03)
    for model in result.models:
        assert [o.batch for o in model.offline] == [1, 4]
        assert all(len(o.rounds) == FEWEST_ROUNDS for o in model.offline)
        one, four = (o.end_to_end.latency.p50_ms for o in model.offline)
        assert one is not None and four is not None and four < 4 * one
        assert [s.fps for s in model.streams] == [200.0]
        assert model.streams[0].end_to_end is not None
        assert model.streams[0].end_to_end.count >= 11
        assert model.missing == ()
    assert len(result.conditions) == 1 + FEWEST_ROUNDS + 2 + 1
    assert result.no_power is None or result.no_power.startswith("power is not known here")
    assert result.interrupted is None


def test_a_batch_that_a_file_does_not_take_is_missing_and_the_rest_is_there(run: Bench) -> None:
    class One(FakeSession):
        def run(self, batch: Image) -> Any:
            if len(batch) != 1:
                raise ModelError("this model takes 1")
            return super().run(batch)

    result = run(FakeSession(SPEC, rule=right), One(SPEC, rule=right), batches=(1, 2))
    student = result.students[0].result
    assert [o.batch for o in student.offline] == [1]
    assert student.missing[0].what == "offline, batch 2"
    assert "this model takes 1. Fix: lfd-export onnx --batch dynamic" in student.missing[0].reason
    assert [o.batch for o in result.teacher.offline] == [1, 2]


class Dying(Local):
    """The measuring process of the student is killed when it is asked for batches of this size."""

    def ask(self, op: str, pictures: Sequence[Image] = (), **message: Any) -> tuple[dict[str, Any], list[Image]]:
        if message.get("batch") == 64 and self._path.name == "b":
            raise ProcessEndedError("b: its measuring process ended during measure (killed by signal 9)")
        return super().ask(op, pictures, **message)


def test_a_process_that_a_batch_kills_is_not_told_to_export_again(run: Bench) -> None:
    result = run(*[FakeSession(SPEC, rule=right) for _ in range(3)], batches=(64,), probe=Dying)
    assert [f.message for f in result.failures] == ["its measuring process ended during measure (killed by signal 9)"]
    assert [s.result.name for s in result.students] == ["a"]


def test_memory_is_that_of_one_picture_at_a_time(run: Bench) -> None:
    asked: list[str] = []

    class Noting(Local):
        def ask(self, op: str, pictures: Sequence[Image] = (), **message: Any) -> tuple[dict[str, Any], list[Image]]:
            asked.append(f"{op} {message.get('batch')}")
            return super().ask(op, pictures, **message)

    run(FakeSession(SPEC, rule=right), FakeSession(SPEC, rule=right), batches=(4,), streams=(500.0,), probe=Noting)
    assert asked.index("memory None") < min(asked.index("measure 4"), asked.index("stream None"))
    assert asked.index("memory None") > asked.index("measure None")


class Stopping(FakeSession):
    """Somebody presses Ctrl-C while this model runs for the nth time."""

    def __init__(self, at: int) -> None:
        super().__init__(SPEC, rule=right)
        self.at = at

    def run(self, batch: Image) -> Any:
        if self.calls == self.at:
            raise KeyboardInterrupt
        return super().run(batch)


def test_what_was_measured_before_an_interruption_is_kept_and_marked(run: Bench) -> None:
    counting = FakeSession(SPEC, rule=right)
    whole = run(FakeSession(SPEC, rule=right), counting)
    thrown = len(whole.students[0].result.single.warm_up.thrown_away_ms)
    assert whole.frames.scored == 3

    said: list[str] = []
    student = Stopping(10**9)

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("measuring, round 3"):
            student.at = student.calls + 1  # in the round, after the inference that is thrown away

    result = run(FakeSession(SPEC, rule=right), student, say=say)
    assert result.interrupted == "measuring, round 3 of 6"
    assert [len(m.single.rounds) for m in result.models] == [2, 3]
    assert result.students[0].versus.faster_alone.median > 0
    assert result.teacher.accuracy is None
    assert result.frames.scored == 0
    assert thrown > 0


@pytest.mark.parametrize(("wanted", "rounds"), [([3000, 750], 20), ([3000, 60], 12), ([3000, 11], 6), ([], 6)], ids=str)
def test_the_slowest_model_says_how_many_turns_are_taken(wanted: list[int], rounds: int, tmp_path: Path) -> None:
    entries = [Entry(str(i), tmp_path, Mock(), wanted=count) for i, count in enumerate(wanted)]
    assert rounds_of([*entries, Entry("failed", tmp_path, Mock(), error=ModelError("x"), wanted=1)]) == rounds


class Failing(FakeSession):
    """Runs out of luck at its nth run."""

    at = 10**9

    def run(self, batch: Image) -> Any:
        if self.calls >= self.at:
            raise ModelError("ran out of luck")
        return super().run(batch)


PHASES = (
    "measuring, round 2 of 6",
    "offline in batches of 2, round 1 of 6",
    "offline in batches of 2, round 2 of 6",
    "streams of 200 frames a second",
    "scoring picture 1 of 3",
    "sweep: teacher, 1 threads",
    "sweep: a, 1 threads",
)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("phase", PHASES)
def test_an_interruption_at_the_first_instant_of_any_phase_leaves_a_report(run: Bench, phase: str, who: int) -> None:
    models = [Stopping(10**9), Stopping(10**9)]

    def say(text: str) -> None:
        if text == phase:
            models[who].at = models[who].calls

    result = run(*models, say=say, batches=(2,), streams=(200.0,), thread_sweep=(1,))
    if phase.startswith("sweep: a") and who == 0:
        assert result.interrupted is None  # it has had its turn
        return
    assert (result.interrupted or "").startswith(phase[:6])
    assert (result.ended_by, result.failures) == (None, ())
    assert from_json(to_json(result), "x") == result
    assert "Interrupted: " in text_table(result)


@pytest.mark.parametrize(
    ("who", "phase", "exit_code"),
    [(0, PHASES[0], 4), (0, PHASES[4], 4), (1, PHASES[0], 4), (1, PHASES[4], 4), (2, PHASES[4], 1)],
)
def test_a_failure_after_the_first_round_keeps_what_was_measured(
    run: Bench, who: int, phase: str, exit_code: int
) -> None:
    models = [Failing(SPEC, rule=right), Failing(SPEC, rule=right)]

    class Breaking(Halves):
        broken = False

        def __getitem__(self, index: int) -> Sample:
            if self.broken:
                raise DataError("some/folder/1.png: broken")
            return super().__getitem__(index)

    dataset = Breaking()

    def say(text: str) -> None:
        if text == phase and who < 2:
            models[who].at = models[who].calls
        elif text == phase:
            dataset.broken = True

    result = run(*models, say=say, pictures=Pictures(dataset, "halves@test"))
    assert result.interrupted == phase
    assert result.ended_by is not None
    assert result.ended_by.exit_code == exit_code
    assert result.ended_by.name == ("teacher", "a", "halves@test")[who]
    assert result.ended_by.message == ("ran out of luck" if who < 2 else "1.png: broken")
    assert all(model.single.rounds for model in result.models)
    assert from_json(to_json(result), "x") == result


def test_a_failure_in_the_first_round_leaves_nothing(run: Bench) -> None:
    models = [FakeSession(SPEC, rule=right), Failing(SPEC, rule=right)]

    def say(text: str) -> None:
        if text == "measuring, round 1 of 6":
            models[1].at = 0  # type: ignore[attr-defined]

    with pytest.raises(ModelError, match="ran out of luck"):
        run(*models, say=say)


def test_pictures_without_labels_are_only_timed(run: Bench) -> None:
    result = run(FakeSession(SPEC), FakeSession(SPEC), pictures=Pictures(Halves(), "frames", labelled=False))
    assert result.notes == ("no accuracy: frames has no labels",)
    assert result.teacher.accuracy is None
    assert result.frames.timed == 3


def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with Probe(Path("some.onnx")) as child:
        child.ask("memory")
        monkeypatch.setattr("deploy.bench.probe.PATIENCE_S", 0.1)
        os.kill(child._process.pid, signal.SIGSTOP)
        with pytest.raises(ModelError, match=r"some\.onnx: gave no answer to memory in 2 s"):
            child.ask("memory", expected_s=1.5)


def test_an_interruption_while_scoring_keeps_the_pictures_that_all_have_seen(run: Bench) -> None:
    student = Stopping(10**9)

    def say(text: str) -> None:
        if text == "scoring picture 2 of 3":
            student.at = student.calls

    result = run(FakeSession(SPEC, rule=right), student, say=say)
    assert result.interrupted == "scoring picture 2 of 3"
    assert result.frames.scored == 1
    assert [m.accuracy.miou for m in result.models if m.accuracy] == [1.0, 1.0]


def test_an_interruption_before_the_first_round_leaves_nothing(run: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(FakeSession(SPEC), Stopping(2))


def test_a_sweep_measures_every_model_again(run: Bench) -> None:
    other = ModelSpec("fake", LABELS, Preprocess((4, 8)))
    result = run(
        FakeSession(SPEC, 0.001, right), FakeSession(other, 0.001, right), thread_sweep=(1, 2), size_sweep=((4, 8),)
    )
    assert [(p.name, p.threads) for p in result.sweep[:4]] == [("teacher", 1), ("a", 1), ("teacher", 2), ("a", 2)]
    assert all(len(p.rounds) == FEWEST_ROUNDS and p.miou is None for p in result.sweep[:4])
    refused, taken = result.sweep[4:]
    assert refused.reason is not None
    assert refused.end_to_end is None
    assert re.search("its input is 8x8 and no other size. Fix: lfd-export onnx --size 4x8", refused.reason)
    assert (taken.reason, taken.size_hw, taken.miou) == (None, (4, 8), 1.0)


def test_some_pictures_are_kept_to_be_shown(run: Bench) -> None:
    run(
        FakeSession(SPEC, rule=right), FakeSession(SPEC, rule=all_dark), pictures=Pictures(Halves(20, (6, 6)), "x@test")
    )
    shown: list[Shown] = run.shown  # type: ignore[attr-defined]
    assert [s.name for s in shown] == ["0", "5", "10", "15"]
    assert (shown[0].maps["teacher"] == shown[0].truth).all()
    assert not shown[0].maps["a"].any()


def test_a_run_is_a_checkpoint_and_its_weights_are_what_is_hashed(tmp_path: Path) -> None:
    run_folder, file = tmp_path / "run", tmp_path / "student.onnx"
    run_folder.mkdir()
    (run_folder / "model.safetensors").write_bytes(b"weights")
    file.write_bytes(b"graph")
    assert is_checkpoint(run_folder)
    assert is_checkpoint(tmp_path / "x.safetensors")
    assert not is_checkpoint(file)
    assert not is_checkpoint(tmp_path)
    assert model_file(run_folder) == run_folder / "model.safetensors"
    assert model_file(file) == file
    for path in (tmp_path, tmp_path / "missing.pth"):
        with pytest.raises(ModelError, match=r"is a folder|no such file"):
            model_file(path)


def test_a_size_that_a_file_does_not_have_is_said_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.bench.probe.open_session", lambda *args: FakeSession(SPEC))
    monkeypatch.setattr("deploy.bench.probe.choose_backend", lambda path, backend: "ort")
    with pytest.raises(ModelError, match=r"\{a\}\.onnx: its input is 8x8 and no other size.* --size 4x8"):
        prepare_file(Request(Path("{a}.onnx"), None, 0, (4, 8)))()


def test_a_file_that_is_missing_is_said_by_its_process(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        prepare_file(Request(tmp_path / "x.onnx", None, 0, None))
