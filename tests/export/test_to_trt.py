"""Building engines, against a fake TensorRT in the shape of 10.3 and of 11.4."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from deploy.artifact import check_engine_fits, engine_info_path, read_engine_info
from export.runnable import BATCH_KEY
from export.to_trt import Progress, TrtOptions, build_engine
from export.trt_graph import read_request
from export.verify import open_runnable
from lfd.errors import ExportError, LfdError, MissingDependencyError, UsageError
from lfd.spec import METADATA_KEY
from tests.export.fake_cuda import make_cuda
from tests.export.fake_tensorrt import Script, make
from tests.export.trt_models import HEIGHT, SPEC, WIDTH, write

VERSIONS = ["10.3.0", "11.4.0"]
Install = Callable[..., Script]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, version: str) -> Install:
    """Return a function that puts the fake in TensorRT's place, and returns what it will do."""

    def put(model: Path | None = None, cuda: Any = None, **script: Any) -> Script:
        wanted = Script(precisions=dict(read_request(model).convolutions) if model else {}, **script)
        monkeypatch.setitem(sys.modules, "tensorrt", make(version, wanted))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda or make_cuda())
        return wanted

    return put


@pytest.mark.parametrize("batch", [1, 4, "N"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_of_each_kind(
    tmp_path: Path, install: Install, version: str, precision: str, batch: int | str
) -> None:
    model = write(tmp_path / "m.onnx", precision, batch, says=precision)
    script = install(model)
    options = TrtOptions(batch=(1, 2, 8) if batch == "N" else None)
    report = build_engine(model, tmp_path / "new/m.engine", options)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"m.engine", "m.engine.json"}
    info = read_engine_info(tmp_path / "new/m.engine")
    assert info == report.info and info.spec == SPEC
    assert info.build.precision == precision and info.convolutions == {precision: 2}
    assert info.build.onnx_sha256 == read_request(model).sha256 and info.build.versions == {"tensorrt": version}
    assert info.built_on.name == "Orin" and info.built_on.compute_capability == (8, 7)
    assert info.batch == ((1, 2, 8) if batch == "N" else (batch,) * 3)
    assert str(tmp_path) not in engine_info_path(tmp_path / "new/m.engine").read_text()
    shapes = [{"frame": tuple((n, HEIGHT, WIDTH, 3) for n in (1, 2, 8))}] if batch == "N" else []
    assert script.seen["_profiles"] == shapes
    assert f"convolutions asked for: 2 {precision}" in str(report) and "SM 8.7" in str(report)
    check_engine_fits(info, info.built_on, report.path)


@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_an_engine_can_be_verified(tmp_path: Path, install: Install, batch: int | str) -> None:
    """Built by the fake, it computes what its ONNX file says; every place of its batch is looked at."""
    model = write(tmp_path / "m.onnx", "fp32", batch)
    proto = onnx.load(model)
    many = {} if batch == 1 else {BATCH_KEY: "dynamic" if batch == "N" else batch}
    helper.set_model_props(proto, {METADATA_KEY: replace(SPEC, provenance=many).to_json()})
    onnx.save(proto, model)
    install(model)
    build_engine(model, tmp_path / "m.engine", TrtOptions(batch=(1, 2, 3) if batch == "N" else None))
    frame = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    with open_runnable(model) as a, open_runnable(tmp_path / "m.engine") as b:
        assert b.runtime == "tensorrt with CUDA graph, fp32"
        for _ in range(4):
            np.testing.assert_array_equal(a.predict(frame), b.predict(frame))
    with pytest.raises(UsageError, match="does not run on openvino"):
        open_runnable(tmp_path / "m.engine", backend="openvino")


def test_options_reach_the_build(tmp_path: Path, install: Install, version: str) -> None:
    model = write(tmp_path / "m.onnx", "fp16")
    script = install(model, dla_cores=2)
    cache = tmp_path / "times.cache"
    options = TrtOptions(
        workspace_mib=512,
        timing_cache=cache,
        optimization_level=5,
        version_compatible=True,
        hardware_compatible="ampere_plus",
        dla_core=1,
        tf32=True,
    )
    report = build_engine(model, tmp_path / "m.plan", options)
    seen = script.seen
    assert {flag.name for flag in seen["_flags"]} == {"TF32", "VERSION_COMPATIBLE", "GPU_FALLBACK"}
    assert {pool.name: size for pool, size in seen["_pools"].items()} == {"WORKSPACE": 512 << 20}
    assert (seen["builder_optimization_level"], seen["DLA_core"]) == (5, 1)
    assert seen["hardware_compatibility_level"].name == "AMPERE_PLUS" and seen["default_device_type"].name == "DLA"
    assert seen["profiling_verbosity"].name == "DETAILED"
    assert report.outcome is not None and report.outcome.on_dla == 1
    assert cache.read_bytes() == b"+times"
    build_engine(model, tmp_path / "m.plan", options)
    assert cache.read_bytes() == b"+times+times", "read before the build, written after it"
    info = read_engine_info(tmp_path / "m.plan")
    assert info.version_compatible and info.hardware_compatible == "ampere_plus"
    assert info.options == {
        "workspace_mib": 512, "optimization_level": 5, "dla_core": 1, "profiling": "detailed", "tf32": True
    }  # fmt: skip


def test_defaults_leave_the_rest_to_tensorrt_but_not_tf32(tmp_path: Path, install: Install) -> None:
    model = write(tmp_path / "m.onnx")
    script = install(model)
    build_engine(model, tmp_path / "m.engine", TrtOptions())
    assert script.seen["_flags"] == set() and script.seen["_pools"] == {}
    assert script.seen["hardware_compatibility_level"] is None and script.seen["default_device_type"] is None


@pytest.mark.parametrize("profiling", ["layer_names_only", "none"])
def test_without_details_the_report_says_what_is_not_known(tmp_path: Path, install: Install, profiling: Any) -> None:
    model = write(tmp_path / "m.onnx")
    install(model)
    report = build_engine(model, tmp_path / "m.engine", TrtOptions(profiling=profiling))
    assert report.outcome is None and report.info.convolutions == {} and "not read back" in str(report)


def test_same_cc_is_asked_for_first(tmp_path: Path, install: Install, version: str) -> None:
    model = write(tmp_path / "m.onnx")
    script = install(model)
    options = TrtOptions(hardware_compatible="same_cc")
    if version.startswith("10."):
        with pytest.raises(UsageError, match=r"TensorRT 10.3.0 has none or ampere_plus"):
            build_engine(model, tmp_path / "m.engine", options)
    else:
        build_engine(model, tmp_path / "m.engine", options)
        assert script.seen["hardware_compatibility_level"].name == "SAME_COMPUTE_CAPABILITY"


def test_one_convolution_left_wider_is_reported(tmp_path: Path, install: Install) -> None:
    model = write(tmp_path / "m.onnx", "int8")
    script = install(model)
    script.precisions["conv0"] = "fp32"
    report = build_engine(model, tmp_path / "m.engine", TrtOptions())
    assert report.info.convolutions == {"fp32": 1, "int8": 1} and "conv0 runs in fp32, not int8" in str(report)


def test_progress_is_told_from_this_thread(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.trt_build.POLL_SECONDS", 0.01)
    model, told = write(tmp_path / "m.onnx"), threading.Event()
    seen: list[Progress] = []

    def note(progress: Progress) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append(progress)
        if progress.phase == "Tactics" and progress.done == 1:
            told.set()

    install(model, at_step=lambda step: None if step == 0 else told.wait(20))
    build_engine(model, tmp_path / "m.engine", TrtOptions(), note)
    assert "Tactics 1/3" in [str(p).split("  ")[1] for p in seen]


FAILURES: list[tuple[str, dict[str, Any], TrtOptions, type[LfdError], str]] = [
    ("a parser's error", {"parser_errors": [("ArgMax", "argmax", "not\nsupported"), ("Conv", "conv0", "x" * 999)]},
     TrtOptions(), ExportError, r"cannot take it: ArgMax argmax: not supported; Conv conv0: x+$"),
    ("a failed build", {"plan": False, "log": ["out of memory", "no engine", "no engine"]}, TrtOptions(), ExportError,
     r"could not build an engine from it \(out of memory; no engine\)"),
    ("a failed build without a word", {"plan": False}, TrtOptions(), ExportError, "it gave no reason"),
    ("an exception", {"at_step": lambda step: 1 / 0}, TrtOptions(), ExportError, "division by zero"),
    ("an engine that does not load", {"loads": False}, TrtOptions(), ExportError, "the plan was refused"),
    ("fp32 for fp16", {"runs": lambda p: "fp32"}, TrtOptions(), ExportError, "was not written: 2 conv.* ask for fp16"),
    ("no such DLA", {}, TrtOptions(dla_core=0), UsageError, "DLA core 0; Orin with TensorRT .* has 0"),
    ("nothing on the DLA", {"dla_cores": 1, "dla_layers": 0}, TrtOptions(dla_core=0), ExportError, "no layer runs on"),
    ("a GPU before Ampere", {"cuda": make_cuda(capability=(7, 5))}, TrtOptions(hardware_compatible="ampere_plus"),
     UsageError, "older than Ampere"),
    ("a range for a fixed batch", {}, TrtOptions(batch=(1, 2, 4)), UsageError, "has a fixed batch of 1"),
    ("no driver", {"cuda": make_cuda(35)}, TrtOptions(), MissingDependencyError,
     r"cudaErrorInsufficientDriver: no driver"),
    ("no device", {"cuda": make_cuda(100)}, TrtOptions(), MissingDependencyError,
     "no NVIDIA GPU.*Fix: run this on that"),
    ("a hidden device", {"cuda": make_cuda(count=0)}, TrtOptions(), MissingDependencyError, "CUDA_VISIBLE_DEVICES"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "options", "error", "says"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES]
)
def test_what_fails_says_so_in_one_line_and_leaves_nothing(
    tmp_path: Path,
    install: Install,
    script: dict[str, Any],
    options: TrtOptions,
    error: type[LfdError],
    says: str,
) -> None:
    model = write(tmp_path / "m.onnx", "fp16")
    install(model, **script)
    with pytest.raises(error, match=says) as found:
        build_engine(model, tmp_path / "new/m.engine", options)
    assert "\n" not in str(found.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_int8_that_is_not_is_refused(tmp_path: Path, install: Install) -> None:
    model = write(tmp_path / "m.onnx", "int8")
    install(model, runs=lambda precision: "fp16")
    with pytest.raises(ExportError, match="2 convolutions ask for int8 and none runs in it"):
        build_engine(model, tmp_path / "m.engine", TrtOptions())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_timing_cache_of_another_gpu(tmp_path: Path, install: Install) -> None:
    model, cache = write(tmp_path / "m.onnx"), tmp_path / "t.cache"
    cache.write_bytes(b"other")
    install(model, cache_fits=False)
    with pytest.raises(UsageError, match=r"t.cache: is no timing cache of TensorRT .* on Orin"):
        build_engine(model, tmp_path / "m.engine", TrtOptions(timing_cache=cache))
    assert cache.read_bytes() == b"other" and not (tmp_path / "m.engine").exists()


@pytest.mark.parametrize("which", ["m.engine", "m.engine.json", "t.cache"])
@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_leaves_all_as_it_was(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch, which: str, older: bool
) -> None:
    model = write(tmp_path / "m.onnx")
    install(model)
    options = TrtOptions(timing_cache=tmp_path / "t.cache")
    if older:
        build_engine(model, tmp_path / "m.engine", options)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    suffix = Path(which).suffix
    real = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        file = real(self, mode, *arguments, **more)
        if "w" in mode and self.suffix == suffix and ".partial" in self.name:
            file.write(b"half" if "b" in mode else "half")
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left") as found:
        build_engine(model, tmp_path / "m.engine", options)
    assert found.value.errno == errno.ENOSPC and Path(found.value.filename).parent == tmp_path
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_ctrl_c_stops_at_the_next_step(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.trt_build.POLL_SECONDS", 0.01)
    model, steps, stopping = write(tmp_path / "m.onnx"), [], threading.Event()

    def step(number: int) -> None:
        steps.append(number)
        if number == 0:
            signal.raise_signal(signal.SIGINT)
        stopping.wait(20)

    def note(progress: Progress) -> None:
        if progress.stopping:
            assert "Ctrl-C again" in str(progress)
            stopping.set()

    install(model, at_step=step, steps=100)
    with pytest.raises(KeyboardInterrupt, match="no engine was written"):
        build_engine(model, tmp_path / "m.engine", TrtOptions(timing_cache=tmp_path / "t.cache"), note)
    assert steps == [0], "TensorRT stopped at the end of the step"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.trt_build.POLL_SECONDS", 0.01)
    model, end = write(tmp_path / "m.onnx"), threading.Event()

    def note(progress: Progress) -> None:
        raise KeyboardInterrupt

    install(model, at_step=lambda step: end.wait(20) and None)
    with contextlib.ExitStack() as stack:
        stack.callback(end.set)
        with pytest.raises(KeyboardInterrupt):
            build_engine(model, tmp_path / "m.engine", TrtOptions(), note)
        assert any(t.name == "tensorrt" for t in threading.enumerate()), "TensorRT is still in its step"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_without_tensorrt_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lfd-toolkit\[trt\]'.*NVIDIA GPU.*Jetson") as found:
        build_engine(model, tmp_path / "m.engine", TrtOptions())
    assert "\n" not in str(found.value)


def test_a_tensorrt_that_is_too_old_or_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "tensorrt", make("8.6.1", Script()))
    with pytest.raises(MissingDependencyError, match=r"TensorRT 8.6.1 is too old; expected 10.3"):
        build_engine(model, tmp_path / "m.engine", TrtOptions())
    monkeypatch.setitem(sys.modules, "tensorrt", make("10.3.0", Script()))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match=r"cuda.bindings.runtime is not installed.*\[trt\]"):
        build_engine(model, tmp_path / "m.engine", TrtOptions())


def test_the_gpu_is_asked_for_before_tensorrt_makes_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = make("10.3.0", Script())
    trt.Builder = trt.Runtime = trt.ILogger = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(35))
    with pytest.raises(MissingDependencyError, match="finds no NVIDIA GPU"):
        build_engine(write(tmp_path / "m.onnx"), tmp_path / "m.engine", TrtOptions())
