"""A stand-in for the module tensorrt, in the shape of 10.3 or 11.4: the names that export and runtime use, no others.

Its classes have slots, as pybind's have: an attribute that does not exist cannot be set. `test_trt_api.py` holds its
names and signatures against TensorRT's own. Its plans are JSON; one that was built from an ONNX file computes with ONNX
Runtime, and one of `plan` gives the largest channel of each pixel.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np


@dataclass
class Script:
    """What the fake does; every default is a build that goes well."""

    parser_errors: list[tuple[str, str, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    plan: bool = True
    loads: bool = True
    precisions: dict[str, str] = field(default_factory=dict)
    runs: Callable[[str], str] | None = None
    """Precision that a convolution gets, given the one that it asks for."""
    dla_cores: int = 0
    dla_layers: int = 1
    cache_fits: bool = True
    steps: int = 3
    at_step: Callable[[int], None] = lambda step: None
    room: bool = True
    """Whether there is memory for an execution context."""
    takes: bool = True
    """Whether a context takes shapes and addresses."""
    runs_through: bool = True
    """Whether it can be started."""
    seen: dict[str, Any] = field(default_factory=dict)
    """What the code under test set: config, profiles, flags."""


WORDS = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}


class HostMemory(bytes):
    """Bytes that say their length as IHostMemory does."""

    @property
    def nbytes(self) -> int:
        return len(self)


def convolution(name: str, precision: str, major: int, dynamic: bool) -> dict[str, Any]:
    """A layer as the inspector of either version describes it."""
    word = WORDS[precision]
    if major >= 11:
        tensor = {"Name": "x", "Location": "Device", "Format": "Row major linear format (kLINEAR)", "Datatype": word}
    else:
        kind = "N/A due to dynamic shapes" if dynamic else word
        tensor = {"Name": "x", "Location": "Device", "Format/Datatype": kind}
    return {
        "Name": f"{name} + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "ParameterType": "Convolution",
        "Weights": {"Type": word, "Count": 8},
        "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: relu]",
    }


def plan(
    shape: tuple[int, ...], out: tuple[int, ...], types: tuple[str, str] = ("UINT8", "UINT8"), code: bool = False
) -> bytes:
    """Return an engine's bytes: -1 is an open batch, `out` (B, H, W) or (B, 3, H, W), `code` lean runtime inside."""
    tensors = [["class_map", "OUTPUT", types[1], out], ["frame", "INPUT", types[0], shape]]
    return json.dumps({"code": code, "layers": {"Layers": []}, "tensors": tensors, "onnx": None}).encode()


def compute(model: str | None, frames: np.ndarray[Any, Any], logits: bool) -> np.ndarray[Any, Any]:
    """Return what an engine gives: by ONNX Runtime with Q/DQ pairs in float, or the channels themselves."""
    if model is None:
        return frames.transpose(0, 3, 1, 2).astype(np.float32) if logits else frames.argmax(3).astype(np.uint8)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(bytes.fromhex(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: frames})[0])


def make(version: str, script: Script) -> ModuleType:
    """Return the module."""
    major = int(version.partition(".")[0])
    trt = ModuleType("tensorrt")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = "internal error", "error", "warning"

        def __init__(self) -> None: ...

        def log(self, severity: Any, msg: str) -> None: ...

    class IProgressMonitor:
        def __init__(self) -> None: ...

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

        def phase_finish(self, phase_name: str) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool: ...  # type: ignore[empty-body]

    class INetworkDefinition:
        __slots__ = ("_dynamic", "_model", "_parsed", "_tensors")

    class ParserError:
        __slots__ = ("_said",)

        def node_operator(self) -> str:
            return self._said[0]

        def node_name(self) -> str:
            return self._said[1]

        def desc(self) -> str:
            return self._said[2]

    class OnnxParser:
        __slots__ = ("_network", "num_errors")

        def __init__(self, network: Any, logger: Any) -> None:
            assert isinstance(network, INetworkDefinition) and isinstance(logger, ILogger)
            self._network, self.num_errors = network, len(script.parser_errors)

        def parse(self, model: Any, path: str | None = None) -> bool:
            import onnx

            proto = onnx.load_model_from_string(bytes(model))
            self._network._parsed, self._network._model = True, bytes(model).hex()
            kinds = {onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.FLOAT: "FLOAT"}
            self._network._tensors = [
                [
                    v.name,
                    mode,
                    kinds[v.type.tensor_type.elem_type],
                    [d.dim_value or -1 for d in v.type.tensor_type.shape.dim],
                ]
                for mode, (v,) in (("INPUT", proto.graph.input), ("OUTPUT", proto.graph.output))
            ]
            self._network._dynamic = not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
            return not script.parser_errors

        def get_error(self, index: int) -> Any:
            error = ParserError()
            error._said = script.parser_errors[index]
            return error

    class ITimingCache:
        __slots__ = ("_data",)

        def serialize(self) -> Any:
            return HostMemory(self._data + b"+times")

    class IOptimizationProfile:
        __slots__ = ("_shapes",)

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
            self._shapes = {input: (min, opt, max)}

    class IBuilderConfig:
        __slots__ = (
            "DLA_core",
            "_cache",
            "_flags",
            "_pools",
            "_profiles",
            "builder_optimization_level",
            "default_device_type",
            "hardware_compatibility_level",
            "profiling_verbosity",
            "progress_monitor",
        )

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._pools[pool] = pool_size

        def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
            cache = ITimingCache()
            cache._data = bytes(serialized_timing_cache)
            return cache

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return script.cache_fits

        def get_timing_cache(self) -> Any:
            return self._cache

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile._shapes)
            return 0

    class EngineInspector:
        __slots__ = ("_text",)

        def get_engine_information(self, format: Any) -> str:  # noqa: A002
            assert format is LayerInformationFormat.JSON
            return str(self._text)

    class IExecutionContext:
        __slots__ = ("_addresses", "_engine", "_shapes")

        def set_input_shape(self, name: str, shape: Any) -> bool:
            (known,) = [t[3] for t in self._engine._tensors.values() if t[0] == name and t[1] == "INPUT"]
            fits = all(side in (-1, given) for side, given in zip(known, shape, strict=True))
            self._shapes = {t[0]: (shape[0], *t[3][1:]) for t in self._engine._tensors.values()} if fits else {}
            return fits and script.takes

        def get_tensor_shape(self, name: str) -> Any:
            return self._shapes[name]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return script.takes

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert isinstance(stream_handle, int)
            gpu = sys.modules["cuda.bindings.runtime"].gpu  # type: ignore[attr-defined]
            (frame,), (out,) = ([t for t in self._engine._tensors.values() if t[1] == m] for m in ("INPUT", "OUTPUT"))
            shape, into = self._shapes[frame[0]], gpu.device[self._addresses[out[0]]]
            source = gpu.device[self._addresses[frame[0]]]

            def work() -> None:
                frames = np.frombuffer(source, np.uint8)[: np.prod(shape)].reshape(shape)
                found = compute(self._engine._model, frames, out[2] == "FLOAT").tobytes()
                ctypes.memmove(into, found, len(found))

            if not script.runs_through:
                self._engine._logger.log(ILogger.ERROR, "a kernel was not found")
                return False
            return bool(gpu.put(stream_handle, work))

    class ICudaEngine:
        __slots__ = ("_logger", "_model", "_tensors", "_text", "num_io_tensors")

        def create_engine_inspector(self) -> Any:
            inspector = EngineInspector()
            inspector._text = self._text
            return inspector

        def create_execution_context(self, strategy: Any = None) -> Any:
            if not script.room:
                self._logger.log(ILogger.ERROR, "out of memory")
                return None
            context = IExecutionContext()
            context._engine, context._addresses, context._shapes = self, {}, {}
            return context

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode[self._tensors[name][1]]

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[self._tensors[name][2]]

        def get_tensor_shape(self, name: str) -> Any:
            return tuple(self._tensors[name][3])

    class Runtime:
        __slots__ = ("DLA_core", "_logger", "engine_host_code_allowed")

        def __init__(self, logger: Any) -> None:
            self._logger, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            record = json.loads(bytes(serialized_engine))
            if not script.loads or (record["code"] and not self.engine_host_code_allowed):
                self._logger.log(ILogger.ERROR, "the plan was refused")
                return None
            engine = ICudaEngine()
            engine._text, engine._model, engine._logger = json.dumps(record["layers"]), record["onnx"], self._logger
            engine._tensors = {tensor[0]: tensor for tensor in record["tensors"]}
            engine.num_io_tensors = len(engine._tensors)
            return engine

    class Builder:
        __slots__ = ("_logger", "num_DLA_cores")

        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self._logger, self.num_DLA_cores = logger, script.dla_cores

        def create_network(self, flags: int = 0) -> Any:
            assert flags == 1 << 1, "strongly typed, and nothing else"
            network = INetworkDefinition()
            network._parsed = False
            return network

        def create_builder_config(self) -> Any:
            config = IBuilderConfig()
            config._flags, config._pools, config._profiles = {BuilderFlag.TF32}, {}, []
            return config

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            assert network._parsed
            script.seen.update({name: getattr(config, name, None) for name in IBuilderConfig.__slots__})
            for message in script.log:
                self._logger.log(ILogger.ERROR, message)
            if network._dynamic and not config._profiles:
                return None
            if not (run_steps(config.progress_monitor) and script.plan):
                return None
            layers = [
                convolution(name, script.runs(p) if script.runs else p, major, network._dynamic)
                for name, p in script.precisions.items()
            ]
            if getattr(config, "default_device_type", None) is DeviceType.DLA:
                dla = {"Name": "{ForeignNode[a...b]}", "LayerType": "DLA", "Inputs": layers[0]["Inputs"]}
                layers += [dla] * script.dla_layers
            if config.profiling_verbosity is not ProfilingVerbosity.DETAILED:
                layers = [layer["Name"] for layer in layers]
            code = BuilderFlag.VERSION_COMPATIBLE in config._flags
            record = {"code": code, "layers": {"Layers": layers}, "tensors": network._tensors, "onnx": network._model}
            return HostMemory(json.dumps(record).encode())

    def run_steps(monitor: Any) -> bool:
        monitor.phase_start("Building", None, 1)
        monitor.phase_start("Tactics", "Building", script.steps)
        for step in range(script.steps):
            script.at_step(step)
            if not monitor.step_complete("Tactics", step):
                return False
        monitor.phase_finish("Tactics")
        monitor.phase_finish("Building")
        return True

    BuilderFlag = enum.Enum("BuilderFlag", "TF32 VERSION_COMPATIBLE GPU_FALLBACK")  # noqa: N806
    DeviceType = enum.Enum("DeviceType", "GPU DLA")  # noqa: N806
    ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")  # noqa: N806
    LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")  # noqa: N806
    TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")  # noqa: N806
    DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 UINT8")  # noqa: N806
    levels = ["NONE", "AMPERE_PLUS", *(["SAME_COMPUTE_CAPABILITY"] if major >= 11 else [])]
    classes = (ILogger, IProgressMonitor, INetworkDefinition, ParserError, OnnxParser, ITimingCache)
    more = (IOptimizationProfile, IBuilderConfig, EngineInspector, ICudaEngine, Runtime, Builder, IExecutionContext)
    for value in (
        *classes,
        *more,
        TensorIOMode,
        DataType,
        BuilderFlag,
        DeviceType,
        ProfilingVerbosity,
        LayerInformationFormat,
    ):
        setattr(trt, value.__name__, value)
    trt.HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", levels)  # type: ignore[attr-defined]
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")  # type: ignore[attr-defined]
    trt.NetworkDefinitionCreationFlag = enum.IntEnum(  # type: ignore[attr-defined]
        "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1}
    )
    trt.__version__ = version  # type: ignore[attr-defined]
    return trt
