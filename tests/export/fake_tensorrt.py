"""A stand-in for the module tensorrt, in the shape of 10.3 or 11.4: the names that the export uses, no others.

Its classes have slots, as pybind's have: an attribute that does not exist cannot be set. `test_trt_api.py` holds its
names and signatures against TensorRT's own.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import onnx


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
        __slots__ = ("_dynamic", "_parsed")

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
            proto = onnx.load_model_from_string(bytes(model))
            self._network._parsed = True
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

    class ICudaEngine:
        __slots__ = ("_text",)

        def create_engine_inspector(self) -> Any:
            inspector = EngineInspector()
            inspector._text = self._text
            return inspector

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
            engine._text = json.dumps(record["layers"])
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
            return HostMemory(json.dumps({"code": code, "layers": {"Layers": layers}}).encode())

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
    levels = ["NONE", "AMPERE_PLUS", *(["SAME_COMPUTE_CAPABILITY"] if major >= 11 else [])]
    classes = (ILogger, IProgressMonitor, INetworkDefinition, ParserError, OnnxParser, ITimingCache)
    more = (IOptimizationProfile, IBuilderConfig, EngineInspector, ICudaEngine, Runtime, Builder)
    for value in (*classes, *more, BuilderFlag, DeviceType, ProfilingVerbosity, LayerInformationFormat):
        setattr(trt, value.__name__, value)
    trt.HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", levels)  # type: ignore[attr-defined]
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")  # type: ignore[attr-defined]
    trt.NetworkDefinitionCreationFlag = enum.IntEnum(  # type: ignore[attr-defined]
        "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1}
    )
    trt.__version__ = version  # type: ignore[attr-defined]
    return trt


def make_cuda(error: int = 0, count: int = 1, capability: tuple[int, int] = (8, 7)) -> ModuleType:
    """Return a stand-in for cuda.bindings.runtime: one GPU called Orin, or an error."""
    cuda = ModuleType("cuda.bindings.runtime")
    status = enum.IntEnum(
        "cudaError_t", {"cudaSuccess": 0, "cudaErrorInsufficientDriver": 35, "cudaErrorNoDevice": 100}
    )
    kinds = enum.Enum("cudaDeviceAttr", "cudaDevAttrComputeCapabilityMajor cudaDevAttrComputeCapabilityMinor")

    def attribute(kind: Any, device: int) -> Any:
        return status(0), capability[0 if kind is kinds.cudaDevAttrComputeCapabilityMajor else 1]

    properties = type("cudaDeviceProp", (), {"name": b"Orin"})()
    for name, value in {
        "cudaDeviceAttr": kinds,
        "cudaGetDeviceCount": lambda: (status(error), None if error else count),
        "cudaGetErrorString": lambda code: (status(0), b"no driver" if code == 35 else b"no device"),
        "cudaDeviceGetAttribute": attribute,
        "cudaGetDeviceProperties": lambda device: (status(0), properties),
    }.items():
        setattr(cuda, name, value)
    return cuda
