"""ONNX Runtime's CUDA and TensorRT providers: against an onnxruntime that behaves as one with them, and the real ones.

What the stand-in does was seen on onnxruntime-gpu 1.31.1 without a GPU: the CUDA provider, where its libraries are
missing, gives a session with the CPU alone, the TensorRT provider raises. With `session.disable_cpu_ep_fallback` the
first, and a node without a kernel, raise the same message. Python's wrapper opens the session anew on the CPU unless
`enable_fallback` is 0. `preload_dlls` prints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx_bytes import onnx_with

from deploy.backends.ort_gpu import CUDA, TENSORRT, OrtGpuSession
from deploy.session import BACKENDS, choose_backend, class_map, open_session
from lfd.errors import LfdError, MissingDependencyError, ModelError
from lfd.spec import ModelSpec

CPU = "CPUExecutionProvider"
ON_CPU = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, but "
    "fallback to CPU EP has been explicitly disabled by the user."
)

FAILURE = (
    "/src/cuda_call.cc:129 std::conditional_t<THRW, void, Status> CudaCall(ERRTYPE, const char*) [with ERRTYPE = "
    "cudaError; bool THRW = true] CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=me ; line=65"
)


@dataclass
class Machine:
    """A machine with an NVIDIA GPU, or nearly.

    Attributes:
        built_with: Providers in the build.
        works: Whether the provider can be initialised.
        on_cpu: Kinds of nodes that it has no kernel for.
        raises: What opening a session raises.
        broken: A provider's library that does not load.
        tells: Whether it is new enough to tell where nodes run.
        opened: Provider options and session settings of each session opened on the provider.
    """

    built_with: tuple[str, ...] = (TENSORRT, CUDA, CPU)
    works: bool = True
    on_cpu: tuple[str, ...] = ()
    raises: str = ""
    broken: bool = False
    tells: bool = True
    opened: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    fails_running: bool = False
    on_gpu: int = 0


class Options:
    """Session options that can be looked at."""

    def __init__(self) -> None:
        self.real = onnxruntime.SessionOptions()
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


def make(machine: Machine, place: Path) -> ModuleType:
    """Return an onnxruntime with GPU providers, whose GPU is this machine's CPU."""

    class Session:
        def __init__(self, path: str, options: Options, providers: list[Any], **more: Any) -> None:
            self._real = onnxruntime.InferenceSession(path, options.real, providers=[CPU])
            self._providers = [CPU]
            if providers == [CPU]:
                return
            (name, settings), strict = providers[0], options.entries.get("session.disable_cpu_ep_fallback") == "1"
            machine.opened.append((settings, options.entries))
            assert all(isinstance(key, str) for key in settings)
            try:
                if machine.raises:
                    raise RuntimeError(machine.raises)
                if strict and (machine.on_cpu or not machine.works):
                    raise RuntimeError(ON_CPU)
            except RuntimeError:
                if more.get("enable_fallback", 1):
                    return  # Python's own fallback
                raise
            self._providers = [name, CPU] if machine.works else [CPU]
            if machine.tells:
                self.get_provider_graph_assignment_info = self._assigned

        def _assigned(self) -> list[Any]:
            def part(provider: str, ops: tuple[str, ...]) -> Any:
                return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=o) for o in ops])

            return [part(CUDA, ("Conv",)), part(CPU, machine.on_cpu), part(CPU, machine.on_cpu)]

        def get_providers(self) -> list[str]:
            return self._providers

        def run(self, *args: Any) -> Any:
            assert self._providers == [CPU], "frames go through our own buffers"
            return self._real.run(*args)

        def run_with_iobinding(self, binding: Any) -> None:
            if machine.fails_running:
                raise RuntimeError("CUDA error cudaErrorIllegalAddress:an illegal memory access\nwas encountered")
            machine.on_gpu += 1
            self._real.run_with_iobinding(binding)

        def __getattr__(self, name: str) -> Any:
            if name == "get_provider_graph_assignment_info":
                raise AttributeError(name)
            return getattr(self._real, name)

    class Values:
        @staticmethod
        def ortvalue_from_shape_and_type(shape: list[int], kind: Any, device: str, device_id: int) -> Any:
            assert (device, device_id) == ("cuda", 0)
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

        ortvalue_from_numpy = staticmethod(onnxruntime.OrtValue.ortvalue_from_numpy)

    fake = ModuleType("onnxruntime")
    fake.__dict__.update(
        __version__="1.31.1",
        SessionOptions=Options,
        InferenceSession=Session,
        OrtValue=Values,
        get_available_providers=lambda: list(machine.built_with),
        preload_dlls=lambda: sys.stdout.write("Failed to load libcudnn.so.9: libcudnn.so.9: cannot open\n"),
        set_default_logger_severity=lambda level: None,
        __file__=str(place / "__init__.py"),
    )
    return fake


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Machine]:
    def put_in(**what: Any) -> Machine:
        machine = Machine(**what)
        monkeypatch.setitem(sys.modules, "onnxruntime", make(machine, tmp_path))
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        if machine.broken:
            (tmp_path / "capi").mkdir()
            for part in ("shared", "cuda", "tensorrt"):
                (tmp_path / "capi" / f"libonnxruntime_providers_{part}.so").write_bytes(b"no library")
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
        return machine

    return put_in


@pytest.fixture(params=["ort-cuda", "ort-trt"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def provider_of(backend: str) -> str:
    return {"ort-cuda": CUDA, "ort-trt": TENSORRT}[backend]


def frames(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 32, 3), np.uint8)


def test_it_runs_on_the_provider_and_knows_its_spec(
    tiny_model: Path, spec: ModelSpec, install: Any, backend: str
) -> None:
    machine = install()
    with open_session(tiny_model, backend, threads=1) as session:
        assert session.spec == spec and session.batch == 1
        assert session.build.backend == f"onnxruntime {provider_of(backend)}"
        assert (session.build.precision, session.build.device) == ("fp32", "cuda:0")
        for seed in range(3):
            np.testing.assert_array_equal(class_map(session, frames(1, seed)[0]), frames(1, seed)[0].argmax(2))
        kept = session.run(frames(1))
    np.testing.assert_array_equal(kept, frames(1).argmax(3), "readable when the session has gone")
    assert machine.on_gpu == 4
    ((_, entries),) = machine.opened
    assert entries["session.disable_cpu_ep_fallback"] == "1"


@pytest.mark.parametrize(
    ("metadata", "trt"),
    [
        ({}, {"trt_fp16_enable": False, "trt_int8_enable": False}),
        ({"lfd_precision": "fp16"}, {"trt_fp16_enable": True, "trt_int8_enable": False}),
        (
            {"lfd_precision": "int8", "lfd_int8_target": "trt"},
            {"trt_fp16_enable": True, "trt_int8_enable": True},
        ),
    ],
)
def test_the_precision_is_the_files(
    tmp_path: Path, tiny_model: Path, install: Any, metadata: dict[str, str], trt: dict[str, bool]
) -> None:
    machine = install()
    path = onnx_with(tiny_model, tmp_path / "m.onnx", **metadata)
    open_session(path, "ort-trt").close()
    assert machine.opened[0][0] == {"device_id": 0, "trt_engine_cache_enable": False} | trt
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    if "lfd_int8_target" not in metadata:
        open_session(path, "ort-cuda").close()
        assert machine.opened[1][0] == {"device_id": 0, "use_tf32": 0}


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ({"built_with": (CPU,)}, MissingDependencyError, r"built without .*uninstall onnxruntime.*'onnxruntime-gpu"),
        ({"works": False}, MissingDependencyError, r"cannot initialise \w+\. Fix: pip install .*NVIDIA's driver"),
        ({"works": False, "broken": True}, MissingDependencyError, r"cannot initialise \w+ \(.*providers_shared.so: "),
        ({"raises": "x.cc:7 Please install", "broken": True}, MissingDependencyError, r"\(.*providers_shared.so: "),
        ({"raises": FAILURE}, MissingDependencyError, r"\(CUDA failure 100: no CUDA-capable device is detected\)"),
        ({"on_cpu": ("Resize", "ArgMax")}, ModelError, r"no kernel for ArgMax, Resize, .*on the CPU.*1\.21"),
        ({"on_cpu": ("ArgMax",), "tells": False}, ModelError, "no kernel for some of its nodes"),
        (
            {"raises": "CUDA failure 2: out of\nmemory ; GPU=0"},
            ModelError,
            r"take it \(CUDA failure 2: out of memory\)",
        ),
        ({"raises": "could not build\nengine"}, ModelError, r"does not take it \(could not build engine\)"),
    ],
)
def test_it_never_falls_to_the_cpu(
    tiny_model: Path,
    install: Any,
    capsys: pytest.CaptureFixture[str],
    backend: str,
    what: dict[str, Any],
    error: type[LfdError],
    says: str,
) -> None:
    install(**what)
    with pytest.raises(error, match=says) as found:
        open_session(tiny_model, backend)
    assert "\n" not in str(found.value) and "backend ort" in str(found.value)
    assert capsys.readouterr() == ("", "")


def test_a_failing_run_is_an_error(tiny_model: Path, install: Any, backend: str) -> None:
    machine = install()
    with open_session(tiny_model, backend) as session:
        machine.fails_running = True
        with pytest.raises(ModelError, match=r"failed while running: CUDA error .*illegal memory access was"):
            session.run(frames(1))


@pytest.mark.parametrize(
    "batch",
    [np.zeros((1, 24, 33, 3), np.uint8), np.zeros((2, 24, 32, 3), np.uint8), np.zeros((1, 24, 32, 3), np.float32)],
)
def test_a_batch_that_does_not_fit(tiny_model: Path, install: Any, batch: np.ndarray) -> None:
    install()
    with open_session(tiny_model, "ort-cuda") as session, pytest.raises(ModelError, match="this model takes"):
        session.run(batch)


@pytest.mark.parametrize("output", ["class_map", "logits"])
def test_an_open_batch_takes_any(tmp_path: Path, spec: ModelSpec, install: Any, output: str) -> None:
    """The buffers follow the number of frames, and the type of what comes out."""
    install()
    path = write_open(tmp_path / "m.onnx", spec, output)
    with open_session(path, "ort-cuda") as session, open_session(path, "ort") as cpu:
        assert session.batch is None
        for count in (1, 3, 3, 2):
            found = session.run(frames(count, count))
            assert found.dtype == (np.float32 if output == "logits" else np.uint8)
            np.testing.assert_array_equal(found, cpu.run(frames(count, count)))


def write_open(path: Path, spec: ModelSpec, output: Any) -> Path:
    from dataclasses import replace

    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node("Cast", ["frame"], ["f"], to=kinds.FLOAT)]
    if output == "logits":
        nodes.append(helper.make_node("Transpose", ["f"], ["out"], perm=[0, 3, 1, 2]))
        out = helper.make_tensor_value_info("out", kinds.FLOAT, ["n", 3, 24, 32])
    else:
        nodes.append(helper.make_node("ArgMax", ["f"], ["a"], axis=3, keepdims=0))
        nodes.append(helper.make_node("Cast", ["a"], ["out"], to=kinds.UINT8))
        out = helper.make_tensor_value_info("out", kinds.UINT8, ["n", 24, 32])
    frame = helper.make_tensor_value_info("frame", kinds.UINT8, ["n", 24, 32, 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [frame], [out]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    helper.set_model_props(model, {"lfd_model_spec": replace(spec, output=output).to_json()})
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("target", "backend", "says"),
    [
        ("ort", "ort-cuda", "no int8 convolution for CUDA.*fp32 or fp16"),
        ("openvino", "ort-cuda", "no int8 convolution"),
        ("trt", "ort-cuda", "no int8 convolution"),
        ("ort", "ort-trt", "--target trt"),
        ("openvino", "ort-trt", "--target trt"),
        ("trt", "ort-trt", None),
        (None, "ort-cuda", None),
    ],
)
def test_what_a_file_was_quantised_for(
    tmp_path: Path, tiny_model: Path, target: str | None, backend: str, says: str | None
) -> None:
    path = onnx_with(tiny_model, tmp_path / "m.onnx", **({"lfd_int8_target": target} if target else {}))
    if says is None:
        assert choose_backend(path, backend) == backend
    else:
        with pytest.raises(ModelError, match=says):
            choose_backend(path, backend)


def test_this_onnxruntime_says_what_to_install(tiny_model: Path, backend: str) -> None:
    if provider_of(backend) in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(MissingDependencyError, match="onnxruntime-gpu"):
        open_session(tiny_model, backend)


def test_the_real_onnxruntime_refuses_the_cpu_as_the_stand_in_does(tiny_model: Path) -> None:
    """The message, and that the CPU's provider counts as put there by ONNX Runtime itself."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("no provider here that takes no nodes")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 4
    with pytest.raises(Exception, match="explicitly disabled by the user") as found:
        onnxruntime.InferenceSession(str(tiny_model), options, providers=["AzureExecutionProvider"], enable_fallback=0)
    assert str(found.value) == ON_CPU


def test_the_real_onnxruntime_tells_where_nodes_run(tiny_model: Path) -> None:
    from deploy.backends.ort_gpu import _left_to_cpu

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(tiny_model), options, providers=[CPU])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell")
    assert _left_to_cpu(session) == "ArgMax, Cast"


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ort-cuda", "ort-trt"])
def test_a_real_gpu(tiny_model: Path, name: str) -> None:
    try:
        session = BACKENDS[name](tiny_model, 0, 2)
    except MissingDependencyError as error:
        pytest.skip(str(error).partition(";")[0])
    with session:
        assert isinstance(session, OrtGpuSession) and session.parallel == 1
        for seed in range(3):
            np.testing.assert_array_equal(session.run(frames(1, seed)), frames(1, seed).argmax(3))
