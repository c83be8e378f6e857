"""lfd-export all: what is made, refused and left to other machines, and which file it says to ship."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.artifact import read_engine_info
from deploy.session import open_session
from deploy.timing import Samples
from export import bundle, bundle_maker, speed
from export.bundle_advice import choose
from export.bundle_report import File, Latency, Report, Run
from export.cli import main
from export.errors import GateError
from export.speed import ROUNDS, Timed, take_turns
from export.to_onnx import to_onnx
from export.trt_graph import read_request
from lfd.checkpoint import save_model
from lfd.data import open_dataset
from lfd.errors import ExportError
from lfd.models import create_model
from lfd.spec import ModelSpec, Preprocess
from tests.conftest import make_folder
from tests.export.fake_cuda import make_cuda
from tests.export.fake_tensorrt import Script, make
from tests.export.test_gate import HW, Small

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


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


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ExportError("no such operator")])
def test_one_that_fails_does_not_stop_the_others(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(bundle_maker, "checked_fp16", fails)
    code, _, errors = run(source, pictures, tmp_path / "o")
    assert code == 1 and errors.splitlines()[-1].startswith("error: 1 of 8 files could not be made; small_fp16.onnx: ")
    _, files = read(tmp_path / "o")
    check_folder(tmp_path / "o", files)
    assert files["small_fp16.onnx"]["state"] == "failed" and files["small_int8_ort.onnx"]["state"] == "written"
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


def test_without_calibration_there_is_no_int8(source: Path, pictures: Path, tmp_path: Path) -> None:
    few = make_folder(tmp_path / "few", {"train": 5})
    code, _, errors = run(source, pictures, tmp_path / "o", "--calib", f"folder:{few}")
    record, files = read(tmp_path / "o")
    assert code == 1 and "expected at least 32" in errors.splitlines()[-1] and record["calibration"] is None
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
    assert not record["complete"] and "Interrupted" in (tmp_path / "o/report.md").read_text()
    int8 = files["small_int8_ort.onnx"]
    assert int8["state"] == ("written" if when == "timing" else "not reached")
    assert when != "timing" or (int8["gates"][-1]["name"], int8["gates"][-1]["passed"]) == ("speed", None)


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
    (out / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    code, _, errors = run(source, pictures, out)
    assert code == 2 and "--overwrite" in errors and {p.name: p.read_bytes() for p in out.iterdir()} == before
    scripted(lambda name, backend: 20.0 if "int8_ort" in name else 10.0)
    assert run(source, pictures, out, "--overwrite")[0] == 0
    assert not (out / "small_int8_ort.onnx").exists(), "an older file that is refused now"
    assert (out / "notes.txt").read_text() == "mine" and (out / "small_int8.engine").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--size", "32x64"), 2, "leave --size and --batch away"),
        (("--batch", "2"), 2, "leave --size and --batch away"),
        (("--max-miou-drop", "-1"), 2, "expected a number from 0"),
        (("--calib", "{data}@val"), 2, "two splits"),
        (("--calib", "nothing:here"), 2, "unknown source 'nothing'"),
        (("--method", "guess"), 2, "--method"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    source: Path, pictures: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    given_ = [a.format(data=f"folder:{pictures}") for a in arguments]
    found, _, errors = run(source, pictures, tmp_path / "o", *given_)
    assert found == code and says in errors.splitlines()[-1], errors
    assert not (tmp_path / "o").exists()


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
    assert {name: (c.file, c.backend) for name, c in choices.items()} == {
        "ort": ("int8", "ort"),
        "openvino": ("fp32", "openvino"),
    }
    assert overall is not None and overall.file == "int8" and "3.00 ms, 0.50 points lost" in overall.reason


def test_of_equally_fast_ones_the_closest_to_the_source_is_chosen() -> None:
    close = file("close", on("ort", [9, 11, 9, 11, 9, 11], 0.999))
    lossy = file("lossy", on("ort", [10, 9, 10, 9, 10, 9], 0.99, 0.5))
    _, overall = choose([close, lossy], 1.0)
    assert overall is not None and overall.file == "close" and "As fast as lossy on ort" in overall.reason
    told_apart = file("lossy", on("ort", [8, 8, 8, 8, 8, 8], 0.99, 0.5))
    _, overall = choose([close, told_apart], 1.0)
    assert overall is not None and overall.file == "lossy"


def test_for_tensorrt_without_a_gpu_the_narrowest_that_holds() -> None:
    fp16 = file("fp16", on("ort", [9] * 6), precision="fp16")
    int8 = file("int8", on(None, [], 0.99, 0.5), precision="int8", runtime="trt")
    assert choose([fp16, int8], 1.0)[0]["trt"].file == "int8"
    worse = file("int8", on(None, [], 0.9, 3.0), precision="int8", runtime="trt")
    assert choose([fp16, worse], 1.0)[0]["trt"].file == "fp16"
    assert choose([], 1.0) == ({}, None)


@given(
    st.lists(st.tuples(st.lists(st.floats(0.1, 100), min_size=6, max_size=6), st.floats(0, 1)), min_size=1, max_size=6)
)
def test_what_is_chosen_is_never_told_apart_from_the_fastest(found: list[tuple[list[float], float]]) -> None:
    files = [file(str(i), on("ort", rounds, agreement)) for i, (rounds, agreement) in enumerate(found)]
    _, overall = choose(files, 1.0)
    assert overall is not None
    medians = [f.runs[0].latency.p50_ms for f in files]  # type: ignore[union-attr]
    first = medians.index(min(medians))  # type: ignore[type-var]
    chosen = found[int(overall.file)]
    ratios = [a / b for a, b in zip(chosen[0], found[first][0], strict=True)]
    assert int(overall.file) == first or min(ratios) <= 1 <= max(ratios)
    assert chosen[1] >= found[first][1]


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
