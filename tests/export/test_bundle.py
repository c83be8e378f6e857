"""lfd-export all: what is made, refused and left to other machines, and which file it says to ship."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.artifact import read_engine_info
from deploy.bench import signals
from deploy.environment import Environment
from deploy.session import open_session
from deploy.timing import Samples
from export import bundle, bundle_maker, bundle_source, speed
from export.bundle_advice import choose
from export.bundle_report import Data, File, Latency, Report, Run, Source
from export.bundle_shelf import Shelf
from export.bundle_source import plain
from export.bundle_table import markdown
from export.cli import main
from export.errors import GateError
from export.speed import ROUNDS, Timed, take_turns
from export.to_onnx import to_onnx
from export.trt_graph import read_request
from lfd.checkpoint import save_model
from lfd.data import open_dataset
from lfd.errors import ExportError, LfdError, MissingDependencyError, ModelError
from lfd.files import locked
from lfd.models import create_model
from lfd.spec import ModelSpec, Preprocess
from tests.conftest import make_folder
from tests.export.fake_cuda import make_cuda
from tests.export.fake_tensorrt import Script, make
from tests.export.test_gate import HW, Small

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures") / "toy", {"train": 40, "val": 6})


@pytest.fixture(scope="module")
def source(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("all") / "small.onnx"
    labels = open_dataset(f"folder:{pictures}", "val").labels
    to_onnx(Small(len(labels)).eval(), ModelSpec("small", labels, Preprocess(HW)), path)
    return path


Times = Callable[[str, str | None], float]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Times], None]:
    """Return a function that sets how long each file takes on each backend; 10 ms and, in int8, 5 until then."""

    def put(times: Times) -> None:
        def timed(files: Mapping[Any, Timed], frames: Sequence[Any], threads: int = 0) -> dict[Any, Any]:
            return {key: ((times(f.path.name, f.backend),) * 20,) * ROUNDS for key, f in files.items()}

        monkeypatch.setattr(bundle, "take_turns", timed)

    put(lambda name, backend: 5.0 if "int8" in name else 10.0)
    return put


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def run(source: Path, pictures: Path, out: Path, *more: object) -> tuple[int, str, str]:
    loose = ("--max-miou-drop", 100) if "--max-miou-drop" not in more else ()
    return invoke("all", source, "-o", out, "--data", f"folder:{pictures}", *loose, *more)


def read(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    record = json.loads((out / "report.json").read_text())
    return record, {file["name"]: file for file in record["files"]}


def check_folder(out: Path, files: Mapping[str, Any]) -> None:
    """The folder holds what the report says, and its hashes are right."""
    written = {name for name, file in files.items() if file["state"] == "written"}
    records = {f"{name}.json" for name in written if name.endswith(".engine")}
    assert {p.name for p in out.iterdir()} == written | records | {"report.json", "report.md"}
    for name in written:
        data = (out / name).read_bytes()
        assert (files[name]["size"], files[name]["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_all_of_an_onnx_file(source: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "new/all"
    code, said, errors = run(source, pictures, out)
    assert code == 0, errors
    assert said == (out / "report.md").read_text()
    record, files = read(out)
    check_folder(out, files)
    assert (out / "small_fp32.onnx").read_bytes() == source.read_bytes()
    here = find_spec("openvino") is not None
    assert {name: file["state"] for name, file in files.items()} == {
        "small_fp32.onnx": "written",
        "small_fp16.onnx": "written",
        "small_int8_ort.onnx": "written",
        "small_int8_openvino.onnx": "written" if here else "elsewhere",
        "small_int8_trt.onnx": "written",
        **{f"small_{p}.engine": "elsewhere" for p in ("fp32", "fp16", "int8")},
    }
    assert record["schema"] == 1 and record["complete"] and record["data"]["pictures"] == 6
    assert record["calibration"]["pictures"] == 40 and len(record["calibration"]["sha256"]) == 64
    exact = files["small_fp32.onnx"]["runs"][0]
    assert (exact["agreement"], exact["miou_lost"], exact["miou"]) == (1.0, 0.0, record["source"]["miou"])
    assert list(exact["iou"]) == ["ground", "sky", "thing"] and exact["latency"]["p50_ms"] == 10
    quick = files["small_int8_ort.onnx"]
    assert quick["runs"][0]["latency"]["times_faster"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert [(g["name"], g["passed"]) for g in quick["gates"]] == [("accuracy", True), ("speed", True)]
    assert quick["search"]["quantised"]["target"] == "ort" and quick["search"]["steps"]
    assert not {"accurate", "faster", "speed_note", "ship"} & set(quick["search"]), "the gates say it, and later"
    for name, of in (("int8", "int8_trt"), ("fp16", "fp16")):
        engine = files[f"small_{name}.engine"]
        assert engine["command"] == f"lfd-export trt small_{of}.onnx -o small_{name}.engine"
        assert "lfd-toolkit[trt]" in engine["reason"]
    assert "as written, in float" in files["small_int8_trt.onnx"]["runs"][0]["runtime"]
    assert record["overall"]["file"] in ("small_int8_ort.onnx", "small_int8_openvino.onnx")
    assert record["choices"]["trt"]["file"] == "small_int8_trt.onnx"
    for path in (tmp_path, source.parent, pictures):
        assert str(path) not in (out / "report.json").read_text()
    for name in files:
        assert name in said


def test_a_checkpoint(pictures: Path, tmp_path: Path) -> None:
    labels = open_dataset(f"folder:{pictures}", "val").labels
    model, _ = create_model("lraspp_mobilenet_v3_small", len(labels))
    spec = ModelSpec("lraspp_mobilenet_v3_small", labels, Preprocess(HW))
    save_model(tmp_path / "run/model.safetensors", model, spec)
    code, said, errors = run(
        tmp_path / "run", pictures, tmp_path / "o", "--size", "32x64", "--batch", 2, "--pictures", 3
    )
    assert code == 0, errors
    record, files = read(tmp_path / "o")
    assert record["source"]["name"] == "run" and "PyTorch" in record["source"]["runtime"]
    assert (record["source"]["size_hw"], record["source"]["frames_per_run"]) == ([32, 64], 2)
    assert "with 2 frames" in said and record["data"]["pictures"] == 3
    with open_session(tmp_path / "o/run_fp32.onnx") as session:
        assert session.spec.preprocess.size_hw == (32, 64)
    assert files["run_fp32.onnx"]["gates"][0]["found"] > 0.999


def test_int8_that_is_slower_is_refused(source: Path, pictures: Path, tmp_path: Path, scripted: Any) -> None:
    scripted(lambda name, backend: 20.0 if "int8_ort" in name else 10.0)
    code, said, errors = run(source, pictures, tmp_path / "o")
    assert code == 0, errors
    record, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    slow = files["small_int8_ort.onnx"]
    assert slow["state"] == "refused" and "2.00 times SLOWER" in slow["reason"] and slow["size"] > 0
    assert slow["gates"][-1] == {**slow["gates"][-1], "name": "speed", "passed": False, "found": 0.5}
    assert record["choices"]["ort"]["file"] == "small_fp32.onnx" and "2.00 times SLOWER" in said


def test_int8_that_is_as_fast_is_refused_and_not_called_slower(
    source: Path, pictures: Path, tmp_path: Path, scripted: Any
) -> None:
    scripted(lambda name, backend: 10.0)
    code, said, errors = run(source, pictures, tmp_path / "o")
    assert code == 0 and "no faster than the fp32 file on ort" in said and "SLOWER" not in said, errors
    assert read(tmp_path / "o")[1]["small_int8_ort.onnx"]["state"] == "refused"


def test_what_others_are_held_against_is_timed_whatever_it_loses(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 0 points allowed, rounding alone costs PyTorch's export its own verdict; it stays the measure of int8."""
    described = Run.of

    def strict(backend: str | None, runtime: str, *more: Any) -> Run:
        found = described(backend, runtime, *more)
        return replace(found, holds=False) if runtime.endswith("fp32") else found

    monkeypatch.setattr(Run, "of", strict)
    code, said, errors = run(source, pictures, tmp_path / "o")
    assert code == 0, errors
    record, files = read(tmp_path / "o")
    assert files["small_fp32.onnx"]["runs"][0]["latency"]["p50_ms"] == 10
    assert files["small_int8_ort.onnx"]["gates"][-1]["found"] == 2.0
    assert record["choices"]["ort"]["file"] == "small_int8_ort.onnx" and "loses too much" in said


@needs_openvino
@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [(ModelError("OpenVINO cannot load it"), False), (MissingDependencyError("openvino is half there"), True)],
)
def test_a_runtime_that_does_not_take_a_file_costs_no_file(
    source: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: LfdError,
    elsewhere: bool,
) -> None:
    opened = bundle_maker.open_file

    def opens(path: Path, backend: str, threads: int) -> Any:
        if backend.startswith("openvino"):
            raise error
        return opened(path, backend, threads)

    monkeypatch.setattr(bundle_maker, "open_file", opens)
    code, said, errors = run(source, pictures, tmp_path / "o")
    assert code == 0, errors
    record, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    exact = files["small_fp32.onnx"]
    assert exact["state"] == "written" and [r["backend"] for r in exact["runs"]] == ["ort"]
    if elsewhere:
        assert not exact["fails_on"] and record["runtimes"]["openvino-bf16"].startswith("not here: openvino is half")
    else:
        assert exact["fails_on"]["openvino"] == str(error)
        assert "small_fp32.onnx does not run on openvino: OpenVINO cannot load it" in said


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_without_openvino_its_int8_is_for_later(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_maker, "find_spec", lambda name: None if name == "openvino" else True)
    code, said, errors = run(source, pictures, tmp_path / "o")
    file = read(tmp_path / "o")[1]["small_int8_openvino.onnx"]
    assert code == 0 and file["state"] == "elsewhere" and "lfd-toolkit[openvino]" in file["reason"], errors
    command = "lfd-export int8 small_fp32.onnx -o small_int8_openvino.onnx --target openvino --calib NAME:PATH"
    assert file["command"] == command and command in said
    assert said.count("lfd-toolkit[openvino]") == 1, "of its bf16, the same need not be said again"


@pytest.mark.parametrize("error", [FULL, ExportError("no such operator")])
def test_one_that_fails_does_not_stop_the_others(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(bundle_maker, "to_fp16", fails)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 1 and errors.splitlines()[-1].startswith("error: 1 of 8 files could not be made; small_fp16.onnx: ")
    _, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    assert files["small_fp16.onnx"]["state"] == "failed" and files["small_int8_ort.onnx"]["state"] == "written"
    assert files["small_fp16.onnx"]["reason"] == (error.strerror if isinstance(error, OSError) else str(error))
    assert files["small_fp16.engine"]["reason"] == "there is no small_fp16.onnx to build it from"


def test_a_gate_that_refuses_is_no_failure(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise GateError("int8 loses 9 points", {"steps": [9]})

    monkeypatch.setattr(bundle_maker, "gated", refuses)
    code, said, errors = run(source, pictures, tmp_path / "o")
    _, files = read(tmp_path / "o")
    assert code == 0 and files["small_int8_ort.onnx"]["search"] == {"steps": [9]}, errors
    assert files["small_int8_trt.onnx"]["state"] == "refused" and "not written: int8 loses 9 points" in said
    assert files["small_int8.engine"]["state"] == "not reached"


def test_what_is_not_the_model_ends_it(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_maker, "MIN_AGREEMENT", 1.1)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 1 and "no file was written; small_fp32.onnx: 100.0000% of pixels" in errors
    _, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    assert files["small_fp16.onnx"]["reason"] == "there is no fp32 file to make it of"


def test_without_calibration_there_is_no_int8(source: Path, tmp_path: Path) -> None:
    few = make_folder(tmp_path / "few", {"train": 5, "val": 6})
    code, _, errors = run(source, few, tmp_path / "o")
    record, files = read(tmp_path / "o")
    assert code == 1 and "expected at least 32" in errors.splitlines()[-1] and record["calibration"] is None
    assert any(line.startswith("there will be no int8: ") for line in errors.splitlines()), "said before the work"
    assert files["small_int8_trt.onnx"]["reason"].startswith("calibration frames folder:few@train: ")
    assert files["small_int8_trt.onnx"]["state"] == "failed" and files["small_fp16.onnx"]["state"] == "written"


@pytest.mark.parametrize("when", ["timing", "calibrating"])
def test_an_interruption_keeps_what_is_finished(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((bundle, "take_turns", stop) if when == "timing" else (bundle_maker, "calibrate", stop)))
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 130 and "keeps small_fp32.onnx, small_fp16.onnx" in errors.splitlines()[-1]
    record, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    assert not record["complete"] and "Cut short" in (tmp_path / "o/report.md").read_text()
    int8 = files["small_int8_ort.onnx"]
    assert int8["state"] == "not reached", "no int8 file is written whose speed is not known"
    assert int8["reason"] == ("its speed was not measured" if when == "timing" else "")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Give back the handlers of signals: a command that was interrupted ignores what follows.

    They are the system's before, for tests that were started by nohup too: what it ignores, a command ignores.
    """
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_interrupt_once_and_the_report_is_written(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A signal that follows another while the report is written tears nothing."""
    write = bundle.write_texts

    def writes(texts: Mapping[Path, str]) -> None:
        signal.raise_signal(signal.SIGTERM)
        write(texts)

    monkeypatch.setattr(bundle, "take_turns", lambda *_: signal.raise_signal(number))
    monkeypatch.setattr(bundle, "write_texts", writes)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 130 and "keeps small_fp32.onnx" in errors.splitlines()[-1]
    record, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    assert not record["complete"]


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_at_the_very_end_waits_for_the_report(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    write = bundle.write_texts

    def writes(texts: Mapping[Path, str]) -> None:
        signal.raise_signal(signal.SIGINT)
        write(texts)

    def broken(*_: object) -> None:
        raise ModelError("the runtime failed")

    if fails:
        monkeypatch.setattr(bundle, "take_turns", broken)
    monkeypatch.setattr(bundle, "write_texts", writes)
    code, _, _ = run(source, pictures, tmp_path / "o")
    assert code == 130
    record, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    assert record["complete"] is not fails


@pytest.mark.usefixtures("handlers")
def test_a_second_ctrl_c_gives_up_the_report_and_leaves_nothing_aside(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "take_turns", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(Shelf, "sweep", lambda shelf, complete: signal.raise_signal(signal.SIGINT))
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 130 and errors.splitlines()[-1] == "interrupted"
    assert {p.suffix for p in (tmp_path / "o").iterdir()} == {".onnx"}


@pytest.mark.usefixtures("handlers")
def test_between_the_reports_two_names_a_second_ctrl_c_leaves_the_record(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def renames(path: Path, target: Path) -> Path:
        found = rename(path, target)
        if Path(target).name.startswith("report"):
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(bundle, "take_turns", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(Path, "replace", renames)
    assert run(source, pictures, tmp_path / "o")[0] == 130
    assert not (tmp_path / "o/report.md").exists() and not read(tmp_path / "o")[0]["complete"]


def test_a_disk_that_is_full_at_the_end_costs_the_report_alone(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(bundle, "write_texts", full)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 1 and errors.splitlines()[-1].startswith("error: No space left on device")
    assert "| small_int8_ort.onnx" in errors and "## Ship" in errors, "what was found out is said"
    assert {p.suffix for p in (tmp_path / "o").iterdir()} == {".onnx"}, "whole files, and nothing aside"


def test_a_file_that_cannot_be_placed_has_failed(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Shelf.place

    def places(shelf: Shelf, key: str) -> None:
        if key == "int8_ort":
            raise FULL
        place(shelf, key)

    monkeypatch.setattr(Shelf, "place", places)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 1 and "small_int8_ort.onnx: No space left on device" in errors.splitlines()[-1]
    _, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    file = files["small_int8_ort.onnx"]
    assert (file["state"], file["size"], file["sha256"]) == ("failed", None, None)


def test_a_folder_that_another_process_filled_meanwhile_is_left_alone(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = bundle_source.load_original

    def loading(*arguments: Any) -> Any:
        (tmp_path / "o").mkdir()
        (tmp_path / "o/report.json").write_text("theirs")
        return loads(*arguments)

    monkeypatch.setattr(bundle_source, "load_original", loading)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 2 and "--overwrite" in errors.splitlines()[-1]
    assert [p.read_text() for p in (tmp_path / "o").iterdir()] == ["theirs"]


def test_a_defect_of_ours_keeps_its_traceback_and_the_report(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bundle, "take_turns", defect)
    with pytest.raises(ZeroDivisionError):
        run(source, pictures, tmp_path / "o")
    record, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    assert not record["complete"]


def test_an_older_folder(source: Path, pictures: Path, tmp_path: Path, scripted: Any) -> None:
    out = tmp_path / "o"
    assert run(source, pictures, out)[0] == 0 and (out / "small_int8_ort.onnx").is_file()
    (out / "small_int8.engine").write_bytes(b"built on the device")
    for name in ("notes.txt", "small_int8_ort.onnx.json"):
        (out / name).write_text("mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    code, _, errors = run(source, pictures, out)
    assert code == 2 and "--overwrite" in errors and {p.name: p.read_bytes() for p in out.iterdir()} == before
    scripted(lambda name, backend: 20.0 if "int8_ort" in name else 10.0)
    assert run(source, pictures, out, "--overwrite")[0] == 0
    assert not (out / "small_int8_ort.onnx").exists(), "an older file that is refused now"
    assert (out / "small_int8.engine").is_file()
    assert read(out)[1]["small_int8.engine"]["reason"].endswith("that lies here is of an earlier run")
    assert {(out / name).read_text() for name in ("notes.txt", "small_int8_ort.onnx.json")} == {"mine"}


@pytest.mark.parametrize("error", [ExportError("no such operator"), FULL, KeyboardInterrupt()])
def test_an_older_folder_stays_when_nothing_can_be_made(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = tmp_path / "o"
    assert run(source, pictures, out)[0] == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(bundle_maker, "compare", fails)
    code, _, errors = run(source, pictures, out, "--overwrite")
    said = "keeps nothing new" if code == 130 else "small_fp32.onnx: "
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1) and said in errors.splitlines()[-1]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--size", "32x64"), 2, "leave --size and --batch away"),
        (("--batch", "2"), 2, "leave --size and --batch away"),
        (("--max-miou-drop", "-1"), 2, "--max-miou-drop -1.0; expected points of mIoU, a number from 0"),
        (("--calib", "{data}@val"), 2, "two splits"),
        (("--calib", "nothing:here"), 2, "unknown source 'nothing'"),
        (("--calib", "{data}/none"), 1, "none"),
        (("--calib", "film.mp4"), 1, "film.mp4"),
        (("--method", "guess"), 2, "--method"),
        (("--frames", "31"), 2, "expected at least 32"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    source: Path, pictures: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    given_ = [a.format(data=f"folder:{pictures}") for a in arguments]
    found, _, errors = run(source, pictures, tmp_path / "o", *given_)
    assert found == code and says in errors.splitlines()[-1], errors
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lraspp_v3.small@2+1=x-y", "lraspp_v3.small@2+1=x-y"),
        ("été à la mer", "été_à_la_mer"),
        ("a|b`c\nd", "a_b_c_d"),
        ("--help", "help"),
        ("--", "model"),
    ],
)
def test_names_of_files_tear_no_table_and_read_as_no_option(name: str, found: str) -> None:
    assert plain(name) == found


def never(*_: object, **__: object) -> None:
    raise AssertionError("this takes minutes")


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("link", "is a link to nothing; choose a folder"),
        ("file", "is a file; choose a folder"),
        ("file/under", "a file, not a folder"),
        ("used", "another process is at work in it"),
        ("locked", "not writable"),
        ("locked/under", "not writable"),
    ],
)
def test_a_folder_that_will_not_do_is_said_before_the_work(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, says: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    for name in ("used", "locked"):
        (tmp_path / name).mkdir()
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: (mode != os.W_OK or Path(path).name != "locked") and allowed(path, mode)
    )
    monkeypatch.setattr(bundle_source, "load_original", never)
    with locked(tmp_path / "used"):
        code, _, errors = run(source, pictures, tmp_path / out)
    assert (code, errors.count("\n")) == (2, 1) and says in errors, errors


def test_a_run_that_is_not_there_is_said_before_its_configuration_is(tmp_path: Path) -> None:
    code, _, errors = invoke("all", tmp_path / "tpyo", "-o", tmp_path / "o")
    assert code == 1 and "tpyo: no such run or file" in errors and "config.toml" not in errors


def test_labels_and_frames_are_looked_at_before_the_scoring(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_source, "remember", never)
    (tmp_path / "film.mp4").write_bytes(b"no film" * 99)
    code, _, errors = run(source, pictures, tmp_path / "o", "--calib", tmp_path / "film.mp4")
    assert (code, errors.count("\n")) == (1, 1) and "not a film that can be decoded" in errors, errors
    monkeypatch.setattr("export.calibration.open_frames", never)
    code, _, errors = invoke("all", source, "-o", tmp_path / "o", "--data", "street:?size=48x64&frames=2")
    assert (code, errors.count("\n")) == (4, 1) and "classes" in errors, errors


def test_a_picture_that_changes_meanwhile_is_a_failure_and_no_defect(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = make_folder(tmp_path / "toy", {"train": 32, "val": 3})
    remember = bundle_source.remember

    def remembers(*arguments: Any) -> Any:
        found = remember(*arguments)
        (pictures / "images/val/000.png").write_bytes((pictures / "images/train/000.png").read_bytes())
        return found

    monkeypatch.setattr(bundle_source, "remember", remembers)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 1 and "small_fp32.onnx: a picture has changed since it was scored" in errors.splitlines()[-1]


def test_what_a_killed_run_left_aside_is_in_nobodys_way(source: Path, pictures: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    out = tmp_path / "o"
    (out / f".staging.{dead.pid}.partial").mkdir(parents=True)
    for name in (f".staging.{dead.pid}.partial/a.onnx", f".small_fp32.{dead.pid}.partial.onnx"):
        (out / name).write_bytes(b"half")
    code, _, errors = run(source, pictures, out)
    assert code == 0, errors
    check_folder(out, read(out)[1])


def test_a_link_to_a_run_goes_by_its_own_name(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(f"folder:{pictures}", "val")
    model, _ = create_model("lraspp_mobilenet_v3_small", len(data.labels))
    spec = ModelSpec("lraspp_mobilenet_v3_small", data.labels, Preprocess(HW))
    save_model(tmp_path / "2026-11-23/model.safetensors", model, spec)
    (tmp_path / "best").symlink_to("2026-11-23")
    monkeypatch.chdir(tmp_path / "best")
    for path, stem in [
        (tmp_path / "best", "best"),
        (tmp_path / "best/model.safetensors", "best"),
        (Path(), "2026-11-23"),
    ]:
        loaded = bundle_source.load_original(path, data)
        assert (loaded.stem, loaded.name) == (stem, stem)


def test_the_source_is_never_one_of_its_own_files(source: Path, pictures: Path, tmp_path: Path) -> None:
    own = tmp_path / "small_fp32.onnx"
    own.write_bytes(source.read_bytes())
    code, _, errors = run(own, pictures, tmp_path, "--overwrite")
    assert code == 2 and "choose another folder" in errors and own.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_with_a_gpu_there_are_engines(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Any, version: str
) -> None:
    """By the fakes: the int8 engine is slower than fp32's here, and is not written."""
    script = Script()
    monkeypatch.setitem(sys.modules, "tensorrt", make(version, script))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda())
    build = bundle_maker.build_engine

    def building(path: Path, *more: Any) -> Any:
        script.precisions = dict(read_request(path).convolutions)
        return build(path, *more)

    monkeypatch.setattr(bundle_maker, "build_engine", building)
    scripted(lambda name, backend: {"small_fp16.engine": 1.0, "small_int8.engine": 4.0}.get(name, 3.0))
    out = tmp_path / "o"
    code, said, errors = run(source, pictures, out)
    assert code == 0, errors
    record, files = read(out)
    check_folder(out, files)
    states = {name: file["state"] for name, file in files.items() if name.endswith(".engine")}
    assert states == {"small_fp32.engine": "written", "small_fp16.engine": "written", "small_int8.engine": "refused"}
    exact, half = files["small_fp32.engine"], files["small_fp16.engine"]
    assert exact["runs"][0]["agreement"] == 1.0 and "tensorrt" in exact["runs"][0]["runtime"]
    assert "convolutions asked for: 9 fp16" in half["gates"][0]["note"]
    assert half["runs"][0]["latency"]["times_faster"]["median"] == 3.0
    assert read_engine_info(out / "small_fp16.engine").onnx == "small_fp16.onnx"
    assert record["choices"]["trt"]["file"] == record["overall"]["file"] == "small_fp16.engine"
    assert "1.33 times SLOWER than the fp32 file on trt" in said
    assert record["environment"]["gpus"] == ["Orin"] and " and Orin; " in said, "what the engines were timed on"


@pytest.mark.parametrize("wider", [1, 9])
def test_the_precision_of_an_engine_is_what_its_layers_say(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wider: int
) -> None:
    """An fp16 engine none of whose nine convolutions runs in fp16 is not written; of one that does not it is said."""
    script = Script()
    monkeypatch.setitem(sys.modules, "tensorrt", make("10.3.0", script))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda())
    build = bundle_maker.build_engine

    def building(path: Path, *more: Any) -> Any:
        script.precisions = dict(read_request(path).convolutions)
        left = iter(range(wider if "fp16" in path.name else 0))
        script.runs = lambda asked: asked if next(left, None) is None else "fp32"
        return build(path, *more)

    monkeypatch.setattr(bundle_maker, "build_engine", building)
    code, said, errors = run(source, pictures, tmp_path / "o")
    record, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    engine = files["small_fp16.engine"]
    if wider == 1:
        assert code == 0 and (engine["gates"][0]["name"], engine["gates"][0]["found"]) == ("precision", 1), errors
        assert "runs in fp32, not fp16" in said and files["small_fp32.engine"]["gates"][0]["found"] == 0
    else:
        assert engine["state"] in ("failed", "refused") and "none runs in it" in engine["reason"]
        assert record["choices"]["trt"]["file"] != "small_fp16.engine"


# --- what to ship -----------------------------------------------------------------------------------------------------


def file(name: str, *runs: Run, state: Any = "written", precision: str = "fp32", runtime: str = "any") -> File:
    return File(name, precision, runtime, state, size=1, runs=runs)


def on(backend: str | None, rounds: Sequence[float], agreement: float = 1.0, lost: float = 0.0) -> Run:
    taken = tuple((ms,) * 20 for ms in rounds)
    latency = Latency.of(taken, None) if rounds else None
    return Run(backend, "it", 0.5, lost, {}, agreement, (1.0, "x"), lost <= 1, latency)


def test_the_fastest_that_holds_is_chosen() -> None:
    files = [
        file("fp32", on("ort", [9] * 6), on("openvino", [8] * 6)),
        file("int8", on("ort", [3] * 6, 0.99, 0.5)),
        file("lossy", on("openvino", [1] * 6, 0.9, 1.5)),
        file("slow", on("openvino", [0.5] * 6), state="refused"),
    ]
    choices, overall = choose(files, 1.0)
    assert choices.pop("trt").file == "fp32", "whose engine can be built"
    assert {name: (c.file, c.backend) for name, c in choices.items()} == {
        "ort": ("int8", "ort"),
        "openvino": ("fp32", "openvino"),
    }
    assert overall is not None and overall.file == "int8" and "3.00 ms, 0.50 points lost" in overall.reason


def test_of_equally_fast_ones_the_closest_to_the_source_is_chosen() -> None:
    close = file("close", on("ort", [9.6, 10.2, 9.6, 10.2, 9.6, 10.2], 0.999))
    lossy = file("lossy", on("ort", [9.9, 9.4, 9.9, 9.4, 9.9, 9.4], 0.99, 0.5))
    _, overall = choose([close, lossy], 1.0)
    assert (
        overall is not None
        and overall.file == "close"
        and "Not told apart by 2.5 % from lossy on ort" in overall.reason
    )
    told_apart = file("lossy", on("ort", [8, 8, 8, 8, 8, 8], 0.99, 0.5))
    _, overall = choose([close, told_apart], 1.0)
    assert overall is not None and overall.file == "lossy"


@pytest.mark.parametrize(("faster", "chosen"), [(1.02, "close"), (1.03, "lossy")])
def test_a_difference_that_is_real_and_tiny_buys_no_loss(faster: float, chosen: str) -> None:
    """Medians that differ by less than 2.5 % count as equal, here as in lfd-bench."""
    close, lossy = file("close", on("ort", [10 * faster] * 6, 0.999)), file("lossy", on("ort", [10] * 6, 0.99, 0.5))
    _, overall = choose([close, lossy], 1.0)
    assert overall is not None and overall.file == chosen


def engine(precision: str, state: str) -> File:
    return file(f"{precision}.engine", state=state, precision=precision, runtime="trt")


@pytest.mark.parametrize(
    ("lost", "states", "chosen"),
    [
        ((0.5, 0.0, 0.0), ("elsewhere", "elsewhere", "elsewhere"), "int8"),
        ((3.0, 0.0, 0.0), ("elsewhere", "elsewhere", "elsewhere"), "fp16"),
        ((3.0, 3.0, 0.0), ("elsewhere", "elsewhere", "elsewhere"), "fp32"),
        ((0.5, 0.0, 0.0), ("not reached", "not reached", "not reached"), "int8"),
        ((0.5, 0.0, 0.0), ("failed", "not reached", "refused"), "fp16"),
        ((0.5, 0.0, 0.0), ("failed", "failed", "refused"), None),
        ((3.0, 3.0, 3.0), ("elsewhere", "elsewhere", "elsewhere"), None),
    ],
)
def test_for_tensorrt_the_narrowest_that_holds_and_was_not_tried(
    lost: tuple[float, ...], states: tuple[str, ...], chosen: str | None
) -> None:
    files = [
        file("int8", on(None, [], 0.99, lost[0]), precision="int8", runtime="trt"),
        file("fp16", on("ort", [9] * 6, 0.99, lost[1]), precision="fp16"),
        file("fp32", on("ort", [9] * 6, 0.99, lost[2])),
        *(engine(precision, state) for precision, state in zip(("int8", "fp16", "fp32"), states, strict=True)),
    ]
    found = choose(files, 1.0)[0].get("trt")
    assert (found.file if found else None) == chosen
    assert found is None or ("build fp16 too" in found.reason) == (chosen == "int8")
    assert choose([], 1.0) == ({}, None)


def test_what_is_worse_in_both_is_never_chosen() -> None:
    """Rounds of a busy machine do not tell them apart, and the closest of the three would be the slowest."""
    fast = file("bf16", on("openvino-bf16", [5, 40, 6, 5, 6, 5], 0.997))
    plain = file("fp32", on("ort", [8, 9, 8, 9, 8, 9], 1.0))
    slow = file("fp16", on("ort", [10, 4, 11, 10, 11, 10], 0.9999))
    _, overall = choose([fast, plain, slow], 1.0)
    assert overall is not None and overall.file == "bf16" and "99.70% of the pixels" in overall.reason


@pytest.mark.parametrize(("batch", "says"), [(1, "--backend ort"), ("dynamic", "--backend ort"), (4, "4 frames a run")])
def test_the_advice_says_how_it_is_run(batch: int | str, says: str) -> None:
    _, overall = choose([file("fp32", on("ort", [9] * 6))], 1.0, batch)
    assert overall is not None and says in overall.reason


@given(
    st.lists(st.tuples(st.lists(st.floats(0.1, 100), min_size=6, max_size=6), st.floats(0, 1)), min_size=1, max_size=6)
)
def test_nothing_is_chosen_that_is_told_to_be_slower(found: list[tuple[list[float], float]]) -> None:
    files = [file(str(i), on("ort", rounds, agreement)) for i, (rounds, agreement) in enumerate(found)]
    _, overall = choose(files, 1.0)
    assert overall is not None
    medians = [f.runs[0].latency.p50_ms for f in files]  # type: ignore[union-attr]
    first = medians.index(min(medians))  # type: ignore[type-var]
    chosen = found[int(overall.file)]
    ratios = [a / b for a, b in zip(chosen[0], found[first][0], strict=True)]
    assert int(overall.file) == first or min(ratios) <= 1 or statistics.median(ratios) <= 1.025
    assert chosen[1] >= found[first][1]


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError("/home/me/out/.staging.1.partial/a.onnx: is broken"), "a.onnx: is broken"),
        (ModelError("calibration frames folder:/home/me/few: 5 frames"), "calibration frames folder:few: 5 frames"),
        (
            ModelError("does not load (/usr/lib/libnvinfer.so.10:\n missing)"),
            "does not load (libnvinfer.so.10: missing)",
        ),
        (ModelError("mean/std/var, and/or none"), "mean/std/var, and/or none"),
        (OSError(errno.EACCES, "Permission denied", "/home/me/a.onnx"), "Permission denied"),
        (OSError("no number"), "no number"),
    ],
)
def test_errors_are_recorded_without_folders(tmp_path: Path, error: Exception, said: str) -> None:
    assert Shelf(tmp_path, "a").plain(error) == said


def test_the_table_says_what_floats_bought_and_cost() -> None:
    steps = [
        {"kept": [], "bought": 0.0, "cost_ms": None},
        {"kept": ["a"], "bought": 5.0, "cost_ms": 0.25},
        {"kept": list("bcdef"), "bought": -0.001, "cost_ms": None},
    ]
    int8 = replace(
        file("int8", on("ort", [3] * 6), precision="int8"), kept_float=tuple("abcdef"), search={"steps": steps}
    )
    environment = Environment.here(1)
    data = Data("folder", "val", 3, "0" * 64)
    origin = Source("m", "tiny", "torch", (24, 32), 1, 0.5, {"a": 0.5})
    said = markdown(Report(True, origin, data, data, 1.0, {}, (int8,), {}, None, environment))
    assert (
        "- int8: 6 layers in float to hold the accuracy: a bought 5.00 points for 0.25 ms; "
        "b, c, d and 2 more bought 0.00 points\n" in said
    )
    assert "- nothing: no file was both made and timed" in said


@pytest.mark.parametrize(("load", "says"), [(9.5, True), (0.5, False)])
def test_a_busy_machine_is_said(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float, says: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("deploy.environment.os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    code, said, _ = run(source, pictures, tmp_path / "o")
    assert code == 0 and ("a load of 9.5 on 2 cores" in said) == says
    assert read(tmp_path / "o")[0]["load"] == load


# --- taking turns -----------------------------------------------------------------------------------------------------


def test_everything_is_timed_in_short_turns(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is given: a stall in the middle hits both, and the first run of each turn is thrown away."""
    turns: list[tuple[str, int]] = []

    def measured(session: Any, frames: Any, count: int, start: int) -> Samples:
        turns.append((session.name, count))
        stall = 10 if 40 < len(turns) < 80 else 1
        first, rest = 1000.0 * stall, session.ms * stall
        model = (first, *[rest] * (count - 1)) if len(turns) > 2 else (session.ms,) * count
        return Samples((0.0,) * count, model, (0.0,) * count)

    class Session:
        def __init__(self, path: Path, backend: Any, threads: int) -> None:
            self.name, self.ms = str(backend), {"a": 20.0, "b": 40.0}[str(backend)]
            with open_session(source) as real:
                self.spec = real.spec

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(speed, "open_session", Session)
    monkeypatch.setattr(speed, "measure", measured)
    rounds = take_turns({"a": Timed(source, "a"), "b": Timed(source, "b")}, [])
    assert len(rounds["a"]) == len(rounds["b"]) == ROUNDS
    begins = [turns[i][0] for i in range(2, len(turns), 2)]
    assert begins[:4] == ["a", "b", "a", "b"], "each begins in its turn"
    samples = {key: [ms for taken in r for ms in taken] for key, r in rounds.items()}
    assert 1000 not in samples["a"] and len(samples["a"]) >= 75 and len(samples["b"]) >= 64
    ratio = Latency.of(rounds["a"], rounds["b"]).times_faster
    assert ratio is not None and (ratio.median, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_report_is_what_the_record_says(source: Path, pictures: Path, tmp_path: Path) -> None:
    """Its own classes read its JSON's keys: nothing is in the one and not in the other."""
    run(source, pictures, tmp_path / "o")
    record, _ = read(tmp_path / "o")
    assert set(record) == set(Report.__dataclass_fields__)
    assert set(record["files"][0]) == set(File.__dataclass_fields__)
    assert set(record["files"][0]["runs"][0]) == set(Run.__dataclass_fields__)
