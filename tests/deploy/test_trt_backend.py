"""TensorRT's backend against a fake TensorRT in the shape of 10.3 and 11.4, and a fake CUDA; and the real ones."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.artifact import Accelerator, BuildInfo, EngineInfo, engine_info_path
from deploy.backends.cuda import find_gpu, require_tensorrt
from deploy.session import choose_backend, class_map, open_session
from lfd.errors import LfdError, MissingDependencyError, ModelError, UsageError
from lfd.spec import ModelSpec
from tests.export.fake_cuda import Gpu, make_cuda
from tests.export.fake_tensorrt import Script, make, plan

HERE = f"{platform.system()}-{platform.machine()}".lower()
H, W, K = 24, 32, 3
PLAIN = plan((1, H, W, 3), (1, H, W))


def put(path: Path, spec: ModelSpec, version: str, data: bytes, **changes: Any) -> Path:
    """Write an engine and its record."""
    path.write_bytes(data)
    info = EngineInfo(
        spec=spec,
        build=BuildInfo("tensorrt", "fp16", "1" * 64, {"tensorrt": version}, "Orin"),
        built_on=Accelerator("Orin", (8, 7), version, HERE),
        version_compatible=False,
        hardware_compatible="none",
        batch=(1, 1, 1),
        onnx="m.onnx",
        engine_sha256=hashlib.sha256(data).hexdigest(),
        options={},
        convolutions={},
    )
    engine_info_path(path).write_text(dataclasses.replace(info, **changes).to_json())
    return path


@pytest.fixture(params=["10.3.0", "11.4.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(tmp_path: Path, spec: ModelSpec, version: str) -> Callable[..., Path]:
    def write(data: bytes = PLAIN, output: Any = "class_map", **changes: Any) -> Path:
        return put(tmp_path / "m.engine", dataclasses.replace(spec, output=output), version, data, **changes)

    return write


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, version: str) -> Callable[..., Gpu]:
    """Return a function that puts the fakes in place, and returns the GPU."""

    def put_in(gpu: Gpu | None = None, **script: Any) -> Gpu:
        on = gpu or Gpu()
        monkeypatch.setitem(sys.modules, "tensorrt", make(version, Script(**script)))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(gpu=on))
        return on

    return put_in


def frames(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, H, W, 3), np.uint8)


@pytest.mark.parametrize("recordable", [True, False])
@pytest.mark.parametrize("output", ["class_map", "logits"])
def test_it_gives_what_the_engine_gives(engine: Any, install: Any, version: str, output: str, recordable: bool) -> None:
    gpu = install()
    gpu.recordable = recordable
    logits = output == "logits"
    data = plan((1, H, W, 3), (1, K, H, W), ("UINT8", "FLOAT")) if logits else PLAIN
    with open_session(engine(data, output)) as session:
        for seed in range(3):
            batch = frames(1, seed)
            found = session.run(batch)
            expected = batch.transpose(0, 3, 1, 2).astype(np.float32) if logits else batch.argmax(3)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(class_map(session, batch[0]), batch[0].argmax(2))
        assert found.dtype == (np.float32 if logits else np.uint8)
        assert gpu.launched == (6 if recordable else 0)
        build = session.build
    assert build.backend == f"tensorrt {'with' if recordable else 'without'} CUDA graph"
    assert (build.precision, build.device, dict(build.versions)) == ("fp16", "Orin", {"tensorrt": version})
    assert build.onnx_sha256 == "1" * 64


def test_an_open_batch_takes_any_in_its_range(engine: Any, install: Any) -> None:
    gpu = install()
    with open_session(engine(plan((-1, H, W, 3), (-1, H, W)), batch=(1, 2, 4))) as session:
        assert session.batch is None
        for count in (1, 4, 4, 2):
            np.testing.assert_array_equal(session.run(frames(count)), frames(count).argmax(3))
            assert sorted(map(len, gpu.device.values())) == [count * H * W, count * H * W * 3], "no more than it takes"
        assert gpu.launched == 4 and len(gpu.graphs) == 1
        for wrong in (0, 5):
            with pytest.raises(ModelError, match=f"{wrong} frames.*1 to 4"):
                session.run(frames(wrong))


@pytest.mark.parametrize("shape", [(1, H, W + 1, 3), (2, H, W, 3), (1, 3, H, W)])
def test_a_batch_that_does_not_fit(engine: Any, install: Any, shape: tuple[int, ...]) -> None:
    install()
    with open_session(engine()) as session:
        assert session.batch == 1
        with pytest.raises(ModelError, match="this model takes"):
            session.run(np.zeros(shape, np.uint8))
        with pytest.raises(ModelError, match="uint8"):
            session.run(np.zeros((1, H, W, 3), np.float32))


def test_nothing_is_left_on_the_gpu_and_the_last_result_stays(engine: Any, install: Any) -> None:
    gpu = install()
    session = open_session(engine())
    kept = session.run(frames(1))
    session.close()
    assert not gpu.device and not gpu.streams and not gpu.graphs
    np.testing.assert_array_equal(kept, frames(1).argmax(3))
    del session
    gc.collect()
    assert len(gpu.host) == 1, "what is still looked at"
    del kept
    gc.collect()
    assert not gpu.host


@pytest.mark.parametrize("compatible", [True, False])
def test_code_inside_an_engine_runs_only_where_its_record_says_so(engine: Any, install: Any, compatible: bool) -> None:
    install()
    path = engine(plan((1, H, W, 3), (1, H, W), code=True), version_compatible=compatible)
    if compatible:
        open_session(path).close()
        return
    with pytest.raises(ModelError, match=r"cannot load it \(the plan was refused\).*lfd-export trt m.onnx") as found:
        open_session(path)
    assert "\n" not in str(found.value)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another GPU": ({"built_on": Accelerator("A10", (8, 6), "", HERE)}, {}, r"built for .*here it is.*lfd-export trt"),
    "another version": ({"built_on": Accelerator("Orin", (8, 7), "10.9.1", HERE)}, {}, "TensorRT 10.9.1; here"),
    "another platform": ({"built_on": Accelerator("Orin", (8, 7), "", "linux-riscv64")}, {}, "platform"),
    "another hash": ({"engine_sha256": "0" * 64}, {}, "is not the engine"),
    "no memory": ({}, {"room": False}, r"no memory for it on Orin \(out of memory\)"),
    "a shape refused": ({}, {"takes": False}, "refuses a batch of 1"),
    "no kernel": ({}, {"runs_through": False}, "failed while running: a kernel was not found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(engine: Any, install: Any, version: str, case: str) -> None:
    changes, script, says = REFUSED[case]
    gpu = install(**script)
    if (on := changes.get("built_on")) is not None and not on.tensorrt:
        changes = {"built_on": dataclasses.replace(on, tensorrt=version)}
    with pytest.raises(ModelError, match=says) as found:
        open_session(engine(**changes))
    assert "\n" not in str(found.value)
    gc.collect()
    assert not gpu.device and not gpu.streams


OTHER = {
    "a size": (plan((1, H, W + 8, 3), (1, H, W)), "takes"),
    "a type": (plan((1, H, W, 3), (1, H, W), ("FLOAT", "UINT8")), "does not take one uint8 frame"),
    "half logits": (plan((1, H, W, 3), (1, K, H, W), ("UINT8", "HALF")), "gives .*HALF"),
    "logits": (plan((1, H, W, 3), (1, K, H, W), ("UINT8", "FLOAT")), "ModelSpec says class_map"),
    "a smaller map": (plan((1, H, W, 3), (1, H, W // 2)), "for 1 frames; expected"),
}


@pytest.mark.parametrize("case", OTHER)
def test_an_engine_of_another_form(engine: Any, install: Any, case: str) -> None:
    install()
    with pytest.raises(ModelError, match=OTHER[case][1]):
        open_session(engine(OTHER[case][0]))


CALLS = ("cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize")


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_cuda_is_one_line_and_leaves_nothing(engine: Any, install: Any, call: str) -> None:
    gpu = install(Gpu(**{call: 2}))
    with pytest.raises(ModelError, match=r"CUDA failed .*\(cudaErrorMemoryAllocation: out of memory\)") as found:
        open_session(engine())
    assert "\n" not in str(found.value)
    del found
    gc.collect()
    assert not gpu.device and not gpu.streams and not gpu.host


@pytest.mark.parametrize("call", ["cudaGraphLaunch", "cudaStreamSynchronize"])
def test_an_error_while_running(engine: Any, install: Any, call: str) -> None:
    gpu = install()
    with open_session(engine()) as session:
        gpu.fails[call] = 700
        with pytest.raises(ModelError, match="cudaErrorIllegalAddress: an illegal memory access"):
            session.run(frames(1))


def test_a_batch_for_which_there_is_no_memory(engine: Any, install: Any) -> None:
    """It leaves nothing half made: other batches go on, and the same one is tried anew."""
    gpu = install()
    with open_session(engine(plan((-1, H, W, 3), (-1, H, W)), batch=(1, 2, 4))) as session:
        for count in (4, 1, 2):
            gpu.fails["cudaMalloc"] = 2
            with pytest.raises(ModelError, match=r"to allocate \d+ bytes on the GPU"):
                session.run(frames(count))
            assert not gpu.device and not gpu.graphs
            gpu.fails.clear()
            np.testing.assert_array_equal(session.run(frames(count)), frames(count).argmax(3))


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_a_driver_that_records_nothing(engine: Any, install: Any, call: str) -> None:
    install(Gpu(**{call: 2}))
    with open_session(engine()) as session:
        assert "without CUDA graph" in session.build.backend
        np.testing.assert_array_equal(session.run(frames(1)), frames(1).argmax(3))


def test_which_backend_takes_what(engine: Any, tiny_model: Path, tmp_path: Path, spec: ModelSpec) -> None:
    path = engine()
    assert choose_backend(path) == choose_backend(path, "trt") == "trt"
    assert choose_backend(put(tmp_path / "m.plan", spec, "11.4.0", PLAIN)) == "trt"
    with pytest.raises(UsageError, match="does not run on ort; expected the backend trt"):
        choose_backend(path, "ort")
    with pytest.raises(UsageError, match="lfd-export trt"):
        choose_backend(tiny_model, "trt")


def test_the_dla_it_was_built_for_is_the_one_it_runs_on(
    engine: Any, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    asked: list[int] = []
    runtime = sys.modules["tensorrt"].Runtime
    fresh = runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        runtime, "deserialize_cuda_engine", lambda self, data: (asked.append(self.DLA_core), fresh(self, data))[1]
    )
    open_session(engine(options={"dla_core": 1})).close()
    assert asked == [1]


@pytest.mark.parametrize("missing", ["tensorrt", "cuda.bindings.runtime"])
def test_what_is_not_installed_is_said(
    engine: Any, install: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    install()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=r"lfd-toolkit\[trt\]") as found:
        open_session(engine())
    assert "\n" not in str(found.value)


@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_the_real_cuda_says_it_where_there_is_no_gpu(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.bindings.runtime as real

    if int(real.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU here")
    trt = make("11.4.0", Script())
    trt.Runtime = trt.ILogger = None  # type: ignore[attr-defined] - nothing of TensorRT is made before
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(MissingDependencyError, match=r"no NVIDIA GPU here \(CUDA failed to count GPUs \(cudaError"):
        open_session(engine())


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.trt
@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, -1])
def test_a_real_engine_runs(tmp_path: Path, spec: ModelSpec, batch: int) -> None:
    """Build frame -> float -> ArgMax over the channels with TensorRT itself, and hold it against numpy."""
    try:
        trt: Any = require_tensorrt()
        here = find_gpu(trt)
    except LfdError as error:
        pytest.skip(str(error).partition(";")[0])
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    frame = network.add_input("frame", trt.DataType.UINT8, (batch, H, W, 3))
    real = network.add_cast(frame, trt.DataType.FLOAT).get_output(0)
    largest = network.add_topk(real, trt.TopKOperation.MAX, 1, 1 << 3).get_output(1)
    squeeze = network.add_reduce(
        network.add_cast(largest, trt.DataType.FLOAT).get_output(0), trt.ReduceOperation.MAX, 1 << 3, False
    )
    out = network.add_cast(squeeze.get_output(0), trt.DataType.UINT8).get_output(0)
    out.name = "class_map"
    network.mark_output(out)
    config = builder.create_builder_config()
    if batch < 0:
        profile = builder.create_optimization_profile()
        profile.set_shape("frame", (1, H, W, 3), (2, H, W, 3), (4, H, W, 3))
        config.add_optimization_profile(profile)
    data = bytes(memoryview(builder.build_serialized_network(network, config)))
    span = (1, 1, 1) if batch > 0 else (1, 2, 4)
    path = put(tmp_path / "m.engine", spec, here.tensorrt, data, built_on=here, batch=span)
    with open_session(path) as session:
        for count in (1,) if batch > 0 else (1, 4, 2):
            for seed in range(3):
                np.testing.assert_array_equal(session.run(frames(count, seed)), frames(count, seed).argmax(3))


def test_the_record_is_read_before_native_code(engine: Any, install: Any) -> None:
    """A broken record ends before TensorRT is even asked for."""
    install()
    path = engine()
    sys.modules["tensorrt"] = None  # type: ignore[assignment]
    record = json.loads(engine_info_path(path).read_text())
    engine_info_path(path).write_text(json.dumps(record | {"schema": 9}))
    with pytest.raises(ModelError, match="schema 9"):
        open_session(path)
