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

import pytest
from click.testing import CliRunner, Result

from deploy.bench_cli import main
from deploy.record import from_json
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


QUICK = ("--seconds", "0.05", "--max-images", "2")


def bench(*args: str) -> Result:
    return CliRunner().invoke(main, [*args, *QUICK], catch_exceptions=False)


def test_the_tiny_model_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(tiny_onnx(SPEC)), full_check=True)


def test_a_report_from_start_to_end(files: Path) -> None:
    done = bench("student.onnx", "--teacher", "teacher.onnx", "--out", "report", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert "Against the teacher" in done.stdout
    assert "street@test" in done.stdout
    record = from_json((files / "report" / "bench.json").read_text(), "bench.json")
    student = record.students[0].result
    assert (student.name, student.macs, student.params, student.method) == ("student.onnx", 1536, None, "lfd")
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
    assert str(files) not in (files / "report" / "bench.json").read_text()
    assert (files / "report" / "bench.md").read_text().startswith("# Benchmark")


def test_json_goes_to_stdout_alone(files: Path) -> None:
    done = bench("student.onnx", "--teacher", "teacher.onnx", "--json")
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
        (["student.onnx"], 2, "Missing option '--teacher'"),
        (["--teacher", "teacher.onnx"], 2, "Missing argument"),
        (["student.onnx", "--teacher", "teacher.onnx", "--threads", "-1"], 2, "not in the range"),
    ],
)
def test_each_mistake_is_one_line_and_its_code(files: Path, args: list[str], code: int, message: str) -> None:
    done = bench(*args)
    assert done.exit_code == code, done.output
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert str(files) not in errors[0]
    assert done.stdout == ""


def test_one_bad_model_is_named_and_the_others_reported(files: Path) -> None:
    done = bench("student.onnx", "nospec.onnx", "--teacher", "teacher.onnx", "--out", "report")
    assert done.exit_code == 4
    assert "Failed: nospec.onnx: has no ModelSpec" in done.stdout
    assert "error: nospec.onnx: has no ModelSpec" in done.stderr
    record = from_json((files / "report" / "bench.json").read_text(), "bench.json")
    assert [s.result.name for s in record.students] == ["student.onnx"]
    assert record.failures[0].name == "nospec.onnx"


def test_the_built_in_scene_times_models_of_other_classes(files: Path) -> None:
    done = bench("other.onnx", "--teacher", "other.onnx")
    assert done.exit_code == 0, done.output
    assert "no accuracy: street@test has other classes" in done.stdout


def test_an_existing_report_is_refused_before_anything_is_measured(files: Path) -> None:
    (files / "report").mkdir()
    (files / "report" / "bench.md").write_text("mine")
    done = bench("missing.onnx", "--teacher", "missing.onnx", "--out", "report")
    assert done.exit_code == 2
    assert "bench.md exists" in done.stderr
    done = bench("student.onnx", "--teacher", "teacher.onnx", "--out", "report", "--overwrite")
    assert done.exit_code == 0, done.output
    assert (files / "report" / "bench.md").read_text() != "mine"


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from deploy.bench_cli import main; main()", *args]


def _wait(until: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the children in /proc")
def test_ctrl_c_ends_the_children_and_writes_nothing(files: Path) -> None:
    log = files / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command("student.onnx", "--teacher", "teacher.onnx", "--seconds", "60", "--out", "report"),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        _wait(lambda: "warming up" in log.read_text())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1] == "interrupted"
    _wait(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert not (files / "report").exists()


def test_neither_parent_nor_child_reaches_for_torch(files: Path) -> None:
    code = (
        "import sys; import deploy.bench_cli; assert 'cv2' not in sys.modules; "
        "import deploy.bench, deploy.probe, deploy.report; "
        "print(json := [m for m in ('torch', 'onnx', 'rich', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_a_folder_named_deploy_in_the_users_place_is_not_imported(files: Path) -> None:
    (files / "deploy").mkdir()
    (files / "deploy" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    assert bench("student.onnx", "--teacher", "teacher.onnx").exit_code == 0
