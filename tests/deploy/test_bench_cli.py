"""lfd-bench as a user runs it: real processes on a tiny model, and each way to get it wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from bench_doubles import RESULT, Local
from click.testing import CliRunner, Result

from deploy.bench.cli import main
from deploy.bench.pictures import Shown
from deploy.bench.probe import Probe
from deploy.bench.record import BenchmarkResult, from_json, to_json
from lfd.data.camvid import LABELS
from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess

pytest.importorskip("onnxruntime")

SIZE_HW = (24, 32)
SPEC = ModelSpec("tiny", LABELS, Preprocess(SIZE_HW), provenance={"params": 0, "macs": 1536, "method": "lfd"})


def _field(number: int, value: int | bytes | str) -> bytes:
    """Encode one field of a protocol buffer: a varint, or bytes with their length."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tiny_onnx(spec: ModelSpec | None) -> bytes:
    """Return a model that says which channel is the strongest, without the onnx package.

    frame uint8 (1, H, W, 3) -> ArgMax over the channels -> Cast -> uint8 (1, H, W). The numbers are
    those of onnx.proto.
    """

    def tensor(name: str, *shape: int) -> bytes:
        dims = b"".join(_field(1, _field(1, side)) for side in shape)
        return _field(1, name) + _field(2, _field(1, _field(1, 2) + _field(2, dims)))  # 2: UINT8

    def integer(name: str, value: int) -> bytes:
        return _field(5, _field(1, name) + _field(3, value) + _field(20, 2))

    argmax = _field(1, "frame") + _field(2, "best") + _field(4, "ArgMax") + integer("axis", 3) + integer("keepdims", 0)
    cast = _field(1, "best") + _field(2, "map") + _field(4, "Cast") + integer("to", 2)
    graph = _field(1, argmax) + _field(1, cast) + _field(2, "tiny")
    graph += _field(11, tensor("frame", 1, *SIZE_HW, 3)) + _field(12, tensor("map", 1, *SIZE_HW))
    model = _field(1, 8) + _field(7, graph) + _field(8, _field(2, 20))
    return model + (_field(14, _field(1, METADATA_KEY) + _field(2, spec.to_json())) if spec else b"")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with good and bad models, which is also the current one."""
    good = tiny_onnx(SPEC)
    other = ModelSpec("tiny", Labels((*LABELS.names[:-1], "Unicorn"), LABELS.colors), Preprocess(SIZE_HW))
    for name, data in {
        "student.onnx": good,
        "teacher.onnx": good + _field(3, 7) * 500,  # padding in a field that is read over
        "nospec.onnx": tiny_onnx(None),
        "other.onnx": tiny_onnx(other),
        "cut.onnx": good[:90],
        "empty.onnx": b"",
        "text.onnx": b"no model",
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAIR = ("student.onnx", "--teacher", "teacher.onnx")
QUICK = ("--seconds", "0.05", "--max-images", "2")


def bench(*args: str) -> Result:
    return CliRunner().invoke(main, [*args, *QUICK], catch_exceptions=False)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: what a test is about is before and after it."""
    monkeypatch.setattr("deploy.bench.benchmark.Probe", Local)
    monkeypatch.setattr("deploy.bench.sweep.Probe", Local)


def test_the_tiny_model_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(tiny_onnx(SPEC)), full_check=True)


def test_from_start_to_end_in_processes_one_of_them_with_a_bad_model(files: Path) -> None:
    done = bench("student.onnx", "nospec.onnx", "--teacher", "teacher.onnx", "--out", "report", "--threads", "1")
    assert done.exit_code == 4, done.output
    assert "Failed: nospec.onnx: has no ModelSpec" in done.stdout
    assert "error: nospec.onnx: has no ModelSpec" in done.stderr
    assert "Against the teacher" in done.stdout
    assert "street@test" in done.stdout
    text = (files / "report" / "bench.json").read_text()
    record = from_json(text, "bench.json")
    assert [s.result.name for s in record.students] == ["student.onnx"]
    assert record.failures[0].name == "nospec.onnx"
    student = record.students[0].result
    assert (student.macs, student.params, student.method) == (1536, None, "lfd")
    assert student.accuracy is not None
    assert student.accuracy.agreement == 1.0
    assert student.accuracy.miou is not None
    assert record.students[0].versus.miou_lost == 0.0
    assert record.students[0].versus.smaller > 1.0
    assert record.frames.scored == 2
    assert record.environment.threads == 1
    assert student.memory.peak_mb is not None
    assert student.memory.baseline_mb is not None
    assert student.memory.peak_mb > student.memory.baseline_mb > 10
    assert student.single.model_alone.latency.count >= 11
    assert str(files) not in text
    assert (files / "report" / "bench.md").read_text().startswith("# Benchmark")
    assert (files / "report" / "bench.csv").read_text().startswith("model,role,")
    page = (files / "report" / "bench.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 3  # truth, teacher and student of two pictures
    assert str(files) not in page


@pytest.mark.usefixtures("local")
def test_every_scenario_and_sweep_on_request(files: Path) -> None:
    asked = ["--scenario", "offline", "--batch", "1,2", "--scenario", "stream@100", "--threads", "1,2"]
    done = bench(*PAIR, *asked, "--size", "12x16", "--out", "report")
    assert done.exit_code == 0, done.output
    record = from_json((files / "report" / "bench.json").read_text(), "bench.json")
    for model in record.models:
        assert [o.batch for o in model.offline] == [1]
        assert [m.what for m in model.missing] == ["offline, batch 2"]
        assert "Fix: lfd-export onnx --batch dynamic" in model.missing[0].reason
        assert [s.fps for s in model.streams] == [100.0]
    assert [(p.name, p.threads, p.reason is None) for p in record.sweep] == [
        ("teacher.onnx", 2, True),
        ("student.onnx", 2, True),
        ("teacher.onnx", 1, False),
        ("student.onnx", 1, False),
    ]
    assert "Note: student.onnx, input 12x16: its input is 24x32 and no other size" in done.stdout


def test_help_shows_both_commands(files: Path) -> None:
    for words, expected in ((["--help"], "lfd-bench compare"), (["compare", "--help"], "--max-regress")):
        done = CliRunner().invoke(main, words, prog_name="lfd-bench")
        assert done.exit_code == 0
        assert expected in done.stdout
    assert CliRunner().invoke(main, ["compare", "a.json"], prog_name="lfd-bench").exit_code == 2


def test_a_report_compares_with_itself_and_a_bigger_file_is_worse(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(to_json(RESULT))
    done = CliRunner().invoke(main, ["compare", str(before), str(before), "--max-regress", "1%"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "nothing got worse"
    record = json.loads(before.read_text())
    record["students"][0]["result"]["file_bytes"] *= 2
    after.write_text(json.dumps(record))
    done = CliRunner().invoke(main, ["compare", str(before), str(after)])
    assert done.exit_code == 1
    assert "worse     student.onnx: file, MB" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 got worse"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["missing.json", "old.json"], 1, "missing.json: no such file"),
        (["old.json", "old.json"], 1, "a report with schema 1; this version reads 2. Fix: run lfd-bench again"),
        (["text.onnx", "old.json"], 1, "text.onnx: not a report of lfd-bench"),
        (["old.json", "old.json", "--max-regress", "some"], 2, "--max-regress 'some'; expected per cent"),
    ],
)
def test_what_cannot_be_compared_is_one_line(files: Path, args: list[str], code: int, message: str) -> None:
    (files / "old.json").write_text('{"schema": 1}')
    done = CliRunner().invoke(main, ["compare", *args])
    assert done.exit_code == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("local")
def test_json_goes_to_stdout_alone(files: Path) -> None:
    done = bench(*PAIR, "--json")
    assert done.exit_code == 0, done.output
    assert from_json(done.stdout, "stdout").teacher.name == "teacher.onnx"
    assert "measuring" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["missing.onnx", "--teacher", "teacher.onnx"], 4, "missing.onnx: no such file"),
        (["run", "--teacher", "teacher.onnx"], 4, "run is a folder; .* Fix: lfd-export onnx run"),
        (["empty.onnx", "--teacher", "teacher.onnx"], 4, "empty.onnx: 0 bytes"),
        (["student.onnx", "--teacher", "missing.onnx"], 4, "missing.onnx: no such file"),
        (["cut.onnx", "--teacher", "teacher.onnx"], 4, "cut.onnx: ONNX Runtime cannot load it"),
        (["text.onnx", "--teacher", "teacher.onnx"], 4, "text.onnx: ONNX Runtime cannot load it"),
        (["nospec.onnx", "--teacher", "teacher.onnx"], 4, "nospec.onnx: has no ModelSpec"),
        (["other.onnx", "--teacher", "teacher.onnx"], 4, "Unicorn in the model, Bicyclist in the teacher"),
        (["nospec.onnx", "cut.onnx", "--teacher", "teacher.onnx"], 4, "nospec.onnx: has no .*; cut.onnx: ONNX"),
        (["student.onnx", "--teacher", "teacher.onnx", "--data", "camvit:x"], 2, "Did you mean 'camvid'"),
        (["student.onnx", "--teacher", "teacher.onnx", "--data", "camvid:x@tset"], 2, "Did you mean 'test'"),
        (["student.onnx", "--teacher", "teacher.onnx", "--data", "camvid:x"], 1, "x: no such folder"),
        (["student.onnx", "--teacher", "teacher.onnx", "--data", "x"], 2, "expected NAME:PATH"),
        (["other.onnx", "--teacher", "other.onnx", "--data", "street:"], 4, "Bicyclist in the data set street@test"),
        (["student.onnx", "--teacher", "teacher.onnx", "--out", "text.onnx"], 2, "text.onnx is a file"),
        (["student.onnx"], 2, "--teacher, .* is missing; expected lfd-bench STUDENT ... --teacher MODEL"),
        (["--teacher", "teacher.onnx"], 2, "STUDENT is missing; expected lfd-bench STUDENT ... --teacher MODEL"),
        ([*PAIR, "--scenario", "stream@0.001"], 2, "stream@FPS, 1 to 10000 frames a second"),
        ([*PAIR, "--data", "frames:nowhere"], 1, "nowhere: no such file or folder"),
        ([*PAIR, "--threads", "-1"], 2, "--threads '-1'; expected whole numbers from 0 to 1024"),
        ([*PAIR, "--threads", "1,1"], 2, "expected each number once"),
        ([*PAIR, "--threads", "1,x"], 2, "expected whole numbers"),
        ([*PAIR, "--batch", "4"], 2, "no use without --scenario offline"),
        ([*PAIR, "--scenario", "offline", "--batch", "0"], 2, "from 1 to 4096"),
        ([*PAIR, "--scenario", "server"], 2, "scenario 'server'; expected single, offline, or stream@FPS"),
        ([*PAIR, "--scenario", "stream@0"], 2, "expected single, offline, or stream@FPS"),
        ([*PAIR, "--scenario", "stream@1e9"], 2, "expected single, offline, or stream@FPS"),
        ([*PAIR, "--size", "big"], 2, "expected HEIGHTxWIDTH"),
        ([*PAIR, "--backend", "ortt"], 2, "unknown backend 'ortt'. Did you mean 'ort'"),
        (
            [*PAIR, "--suite", "x.toml", "--json"],
            2,
            "leave STUDENT, --teacher, --seconds, --max-images, --json away",
        ),
    ],
)
@pytest.mark.usefixtures("local")
def test_each_mistake_is_one_line_and_its_code(files: Path, args: list[str], code: int, message: str) -> None:
    done = bench(*args)
    assert done.exit_code == code, done.output
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert str(files) not in errors[0]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*PAIR, "--seconds", "nan"], "error: seconds = nan; expected 0.01 to 86400"),
        (["--suite", "x.toml"], "error: --suite needs --out"),
        (["--suite", "x.toml", "--out", "o"], "error: suite x.toml: cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_one_line(files: Path, args: list[str], message: str) -> None:
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("local")
def test_the_built_in_scene_times_models_of_other_classes(files: Path) -> None:
    done = bench("other.onnx", "--teacher", "other.onnx")
    assert done.exit_code == 0, done.output
    assert "no accuracy: street@test has other classes" in done.stdout


@pytest.mark.usefixtures("local")
def test_pictures_without_labels_are_only_timed(files: Path) -> None:
    (files / "pictures").mkdir()
    cv2.imwrite(str(files / "pictures" / "1.png"), np.zeros((24, 32, 3), np.uint8))
    done = bench(*PAIR, "--data", "frames:pictures")
    assert done.exit_code == 0, done.output
    assert "Note: no accuracy: frames has no labels" in done.stdout
    assert "frames: 1 in turns for the clock (32x24), none scored" in done.stdout


@pytest.mark.usefixtures("local")
def test_a_sweep_without_a_point_is_said(files: Path) -> None:
    done = bench(*PAIR, "--size", "12x16")
    assert done.exit_code == 1, done.output
    assert "error: no point of the sweep could be measured: its input is 24x32 and no other size" in done.stderr
    assert "Against the teacher" in done.stdout


def test_a_report_that_somebody_else_wrote_meanwhile_stays(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*args: object) -> tuple[BenchmarkResult, list[Shown]]:
        (files / "report").mkdir()
        (files / "report" / "bench.json").write_text("somebody's")
        return RESULT, []

    monkeypatch.setattr("deploy.bench.benchmark.run_benchmark", measure)
    monkeypatch.setattr("tempfile.tempdir", str(files))
    done = bench(*PAIR, "--out", "report")
    assert done.exit_code == 2
    assert "bench.json exists" in done.stderr
    assert "Against the teacher" in done.stdout
    assert (files / "report" / "bench.json").read_text() == "somebody's"
    saved = Path(done.stderr.strip().rpartition("The record is in ")[2])
    assert from_json(saved.read_text(), "x") == RESULT


@pytest.mark.usefixtures("local")
def test_an_existing_report_is_refused_before_anything_is_measured(files: Path) -> None:
    (files / "report").mkdir()
    (files / "report" / "bench.md").write_text("mine")
    done = bench("missing.onnx", "--teacher", "missing.onnx", "--out", "report")
    assert done.exit_code == 2
    assert "bench.md exists" in done.stderr
    done = bench(*PAIR, "--out", "report", "--overwrite")
    assert done.exit_code == 0, done.output
    assert (files / "report" / "bench.md").read_text() != "mine"


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from deploy.bench.cli import main; main()", *args]


def _wait(until: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def _interrupted(files: Path, when: str, *numbers: signal.Signals) -> tuple[int, str]:
    """Start a benchmark, send signals when it says `when`; return its exit code and stderr, its children gone."""
    log = files / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command(*PAIR, "--seconds", "2", "--out", "report"), stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        _wait(lambda: when in log.read_text())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        code = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    _wait(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    return code, log.read_text()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the children in /proc")


@linux
def test_ended_before_the_first_round_the_children_go_and_nothing_is_written(files: Path) -> None:
    code, log = _interrupted(files, "warming up", signal.SIGTERM)
    assert code == 130
    assert log.splitlines()[-1] == "interrupted"
    assert not (files / "report").exists()


@linux
def test_interrupted_later_what_was_measured_is_kept_and_marked(files: Path) -> None:
    code, log = _interrupted(files, "round 3 of", signal.SIGINT, signal.SIGTERM, signal.SIGTERM)
    assert code == 130
    assert "interrupted; the report says how far it came" in log
    record = from_json((files / "report" / "bench.json").read_text(), "bench.json")
    assert re.fullmatch(r"measuring, round \d+ of \d+", record.interrupted or "")
    assert 2 <= len(record.students[0].result.single.rounds) < 20
    assert "Interrupted: measuring, round" in (files / "report" / "bench.md").read_text()
    assert "Interrupted: measuring, round" in (files / "report" / "bench.html").read_text()


def test_neither_parent_nor_child_reaches_for_torch(files: Path) -> None:
    code = (
        "import sys; import deploy.bench.cli; assert 'cv2' not in sys.modules; "
        "import deploy.bench.benchmark, deploy.bench.probe, deploy.report.pages; "
        "print(json := [m for m in ('torch', 'onnx', 'rich', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_a_folder_named_deploy_in_the_users_place_is_not_imported(files: Path) -> None:
    (files / "deploy").mkdir()
    (files / "deploy" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    with Probe(files / "student.onnx") as probe:
        probe.ask("memory")
