"""lfd-export fp16, int8 and trt as typed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.session import open_session
from export import gate
from export.cli import main
from export.errors import GateError
from tests.conftest import make_folder
from tests.export.test_fp16 import export


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough of them to calibrate on."""
    return make_folder(tmp_path_factory.mktemp("pictures") / "toy", {"train": 40, "val": 6})


@pytest.fixture(scope="module")
def source(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("lraspp_mobilenet_v3_small", pictures, tmp_path_factory.mktemp("models") / "fp32.onnx")


def test_fp16(source: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "fp16.onnx"
    code, said, errors = invoke("fp16", source, "-o", out, "--data", f"folder:{pictures}", "--min-agreement", 0.9)
    assert code == 0 and "fp16" in said and "parity   same" in said, errors
    assert out.stat().st_size < 0.6 * source.stat().st_size
    code, _, errors = invoke("fp16", source, "-o", out, "--data", f"folder:{pictures}")
    assert code == 2 and "--overwrite" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("target", ["ort", "trt"])
def test_int8_is_written_with_its_report(source: Path, pictures: Path, tmp_path: Path, target: str) -> None:
    out, report = tmp_path / "int8.onnx", tmp_path / "report.json"
    code, said, errors = invoke(
        *("int8", source, "-o", out, "--calib", f"folder:{pictures}", "--target", target, "--no-speed"),
        *("--max-miou-drop", 100, "--report", report),
    )
    assert code == 0 and "in int8" in said, errors
    record = json.loads(report.read_text())
    assert record["steps"] and target in json.dumps(record)
    if target == "ort":
        assert open_session(out).build.precision == "int8"


def test_a_report_of_the_models_own_name(source: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    words = ("int8", source, "-o", out, "--calib", f"folder:{pictures}", "--target", "ort", "--report", out)
    code, _, errors = invoke(*words)
    assert code == 2 and "choose another" in errors and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fp16", "{source}", "-o", "{source}", "--data", "{data}"), "is the source itself"),
        (("int8", "{source}", "-o", "{source}", "--calib", "{data}", "--target", "trt"), "is the source itself"),
        (
            ("int8", "{source}", "-o", "{new}", "--calib", "{data}", "--target", "trt", "--report", "{source}"),
            "is the source itself",
        ),
        (
            ("int8", "{source}", "-o", "{new}", "--calib", "{data}", "--target", "trt", "--report", "{same}"),
            "the model's own name",
        ),
        (("trt", "{source}", "-o", "{new}.engine", "--timing-cache", "{source}"), "is the source itself"),
    ],
)
def test_no_command_writes_over_its_own_source(
    source: Path, pictures: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    """Not even where it may replace files, and by whichever name."""
    (tmp_path / "deep").mkdir()
    own = tmp_path / "own.onnx"
    own.write_bytes(source.read_bytes())
    names = {
        "source": tmp_path / "deep/../own.onnx",
        "data": f"folder:{pictures}",
        "new": tmp_path / "new.onnx",
        "same": tmp_path / "deep/../new.onnx",
    }
    code, _, errors = invoke(*(word.format(**names) for word in words), "--overwrite")
    assert (code, errors.count("\n")) == (2, 1) and says in errors, errors
    assert own.read_bytes() == source.read_bytes() and {p.name for p in tmp_path.iterdir()} == {"deep", "own.onnx"}


def test_a_refusal_is_reported_too(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise GateError("int8 loses 9 points", {"steps": [9]})

    monkeypatch.setattr(gate, "gated_int8", refuses)
    out, report = tmp_path / "int8.onnx", tmp_path / "report.json"
    words = ("int8", source, "-o", out, "--calib", f"folder:{pictures}", "--target", "ort", "--report", report)
    code, _, errors = invoke(*words)
    assert code == 1 and errors == "error: int8 loses 9 points\n"
    assert json.loads(report.read_text()) == {"steps": [9]} and not out.exists()


def test_too_few_frames_end_in_one_line(source: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    code, _, errors = invoke("int8", source, "-o", out, "--calib", f"folder:{folder}", "--target", "ort")
    assert code == 1 and "32" in errors and errors.count("\n") == 1 and not out.exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_without_tensorrt_the_command_says_what_to_install(source: Path, tmp_path: Path) -> None:
    code, said, errors = invoke("trt", source, "-o", tmp_path / "x.engine")
    assert code == 1 and said.startswith("trtexec --onnx=") and "lfd-toolkit[trt]" in errors
    assert errors.count("\n") == 1 and not list(tmp_path.iterdir())
