"""One build with TensorRT's objects, from a parsed network to the engine's bytes, and a look into it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy.artifact import AMPERE, Accelerator
from deploy.backends.cuda import MAX_REASON, ErrorLog, make_logger
from export.trt_graph import Request
from export.trt_options import TrtOptions
from lfd.errors import ExportError, UsageError

POLL_SECONDS = 0.5
MAX_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Progress:
    """Where a build stands.

    TensorRT speaks up in bursts: minutes can pass in one step, so that the clock is what shows that it lives.

    Attributes:
        phase: Its name for what it does, the innermost where one holds another; empty before the first.
        done: Steps of it that are done.
        total: Steps that it has.
        seconds: Since the build began.
        stopping: Ctrl-C was pressed, and TensorRT has not stopped yet.
    """

    phase: str
    done: int
    total: int
    seconds: float
    stopping: bool = False

    def __str__(self) -> str:
        clock = f"{int(self.seconds) // 60}:{int(self.seconds) % 60:02}"
        if self.stopping:
            return f"{clock}  stopping at TensorRT's next step; Ctrl-C again to leave at once"
        return f"{clock}  {self.phase or 'building'}" + (f" {self.done}/{self.total}" if self.total else "")


class _State:
    """What TensorRT reports from its threads, read by ours."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.phases: dict[str, tuple[int, int]] = {}  # in the order in which they began
        self.log = ErrorLog()

    def now(self, start: float) -> Progress:
        with self.lock:
            phase, (done, total) = next(reversed(self.phases.items()), ("", (0, 0)))
        return Progress(phase, done, total, time.monotonic() - start, self.stop.is_set())


def _make_monitor(trt: Any, state: _State) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Notes the phases; a request to stop is answered at the end of a step."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            with state.lock:
                state.phases[phase_name] = (0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with state.lock:
                state.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with state.lock:
                if phase_name in state.phases:
                    state.phases[phase_name] = (step + 1, state.phases[phase_name][1])
            return not state.stop.is_set()

    return Monitor()


class Build:
    """The objects of one build; TensorRT needs them alive until it ends.

    Args:
        trt: The module.
        gpu: The GPU, which was asked for before.
        request: The ONNX file.
        options: Of the build.

    Raises:
        UsageError: Something that this TensorRT or this GPU does not have.
        ExportError: TensorRT cannot take the file.
    """

    def __init__(self, trt: Any, gpu: Accelerator, request: Request, options: TrtOptions) -> None:
        self._trt, self._gpu, self._request, self._options = trt, gpu, request, options
        self._state = _State()
        self._logger = make_logger(trt, self._state.log.add)
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(request.data):
            raise ExportError(f"{request.path}: TensorRT {gpu.tensorrt} cannot take it: {self._parser_errors(parser)}")
        config = builder.create_builder_config()
        self._builder, self._network, self._parser, self._config = builder, network, parser, config
        self._monitor = _make_monitor(trt, self._state)
        config.progress_monitor = self._monitor
        self._cache = self._load_timing_cache()
        self._configure()

    def _parser_errors(self, parser: Any) -> str:
        found = []
        for index in range(parser.num_errors):
            complaint = parser.get_error(index)
            found.append(f"{complaint.node_operator()} {complaint.node_name()}: {complaint.desc()}")
        text = " ".join("; ".join(dict.fromkeys(found)).split())
        return text[:MAX_REASON] or self._state.log.reason()

    def _configure(self) -> None:
        trt, config, options = self._trt, self._config, self._options
        config.builder_optimization_level = options.optimization_level
        config.profiling_verbosity = {
            "layer_names_only": trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
            "detailed": trt.ProfilingVerbosity.DETAILED,
            "none": trt.ProfilingVerbosity.NONE,
        }[options.profiling]
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if not options.tf32:  # on by default: fp32 would be less than it says
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible != "none":
            config.hardware_compatibility_level = self._hardware_level()
        if options.dla_core is not None:
            if options.dla_core >= (cores := int(self._builder.num_DLA_cores)):
                raise UsageError(
                    f"DLA core {options.dla_core}; {self._gpu.name} with TensorRT {self._gpu.tensorrt} has {cores}. "
                    "Fix: leave --dla-core away"
                )
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = options.dla_core
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # no DLA takes uint8, ArgMax or every Resize

    def _hardware_level(self) -> Any:
        trt, gpu = self._trt, self._gpu
        if self._options.hardware_compatible == "ampere_plus":
            if gpu.compute_capability < AMPERE:
                raise UsageError(f"hardware compatibility ampere_plus; {gpu.name} is older than Ampere. Fix: use none")
            return trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if not hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"):
            raise UsageError(f"hardware compatibility same_cc; TensorRT {gpu.tensorrt} has none or ampere_plus")
        return trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY

    def _load_timing_cache(self) -> Any:
        """Hand the times measured before to the build; without a file an empty cache, to be written afterwards."""
        path = self._options.timing_cache
        if path is None:
            return None
        known = path.is_file()
        if known and (size := path.stat().st_size) > MAX_CACHE_BYTES:
            raise UsageError(f"{path}: {size} bytes are too many for a timing cache; give another name")
        cache = self._config.create_timing_cache(path.read_bytes() if known else b"")
        if cache is None or not self._config.set_timing_cache(cache, False):
            raise UsageError(
                f"{path}: is no timing cache of TensorRT {self._gpu.tensorrt} on {self._gpu.name}. "
                "Fix: give another name, or delete it"
            )
        return cache

    def timing_cache(self) -> bytes | None:
        """Return the cache as it is after the build; None when there is none."""
        if self._cache is None:
            return None
        cache = self._config.get_timing_cache()
        return bytes(memoryview(cache.serialize()))

    def run(self, batch: tuple[int, int, int], progress: Callable[[Progress], None] | None) -> memoryview:
        """Build the engine.

        TensorRT works in a thread of its own, so that Ctrl-C is heard at once and the clock goes on while it is silent.

        Raises:
            ExportError: TensorRT failed; the message has its reason.
            KeyboardInterrupt: Ctrl-C, and TensorRT has stopped at the end of a step; a second one does not wait for it.
        """
        self._add_profile(batch)
        result: list[Any] = []
        builder, network, config = self._builder, self._network, self._config

        def work() -> None:
            try:
                result.append(builder.build_serialized_network(network, config))
            except Exception as error:  # pybind maps no common base
                result.append(error)

        thread = threading.Thread(target=work, name="tensorrt", daemon=True)
        report = progress or (lambda state: None)
        start = time.monotonic()
        try:
            thread.start()
            self._watch(thread, start, report)
        except KeyboardInterrupt:
            self._state.stop.set()
            report(self._state.now(start))
            self._watch(thread, start, report)
            raise KeyboardInterrupt("interrupted; no engine was written") from None
        finally:
            self._state.stop.set()  # whatever ends the wait, nobody wants the engine any more
        plan = result[0]
        if plan is None or isinstance(plan, Exception):
            reason = self._state.log.reason() if plan is None else " ".join(str(plan).split())[:MAX_REASON]
            raise ExportError(
                f"{self._request.path}: TensorRT {self._gpu.tensorrt} could not build an engine from it ({reason})"
            )
        return memoryview(plan)

    def _watch(self, thread: threading.Thread, start: float, report: Callable[[Progress], None]) -> None:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            report(self._state.now(start))

    def _add_profile(self, batch: tuple[int, int, int]) -> None:
        shape = self._request.input_shape
        if shape[0] is not None:
            return
        profile = self._builder.create_optimization_profile()
        low, best, high = ((size, *shape[1:]) for size in batch)
        profile.set_shape(self._request.input_name, low, best, high)
        if self._config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{self._request.path}: TensorRT refuses batches of {batch} ({self._state.log.reason()})")

    def inspect(self, plan: memoryview) -> str:
        """Return the inspector's JSON for an engine that this object has just built.

        Raises:
            ExportError: TensorRT does not take its own engine back.
        """
        trt = self._trt
        runtime = trt.Runtime(self._logger)
        if self._options.version_compatible:
            runtime.engine_host_code_allowed = True  # its own lean runtime: code that was made here a moment ago
        if self._options.dla_core is not None:
            runtime.DLA_core = self._options.dla_core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ExportError(
                f"{self._request.path}: TensorRT {self._gpu.tensorrt} cannot load the engine that it built "
                f"({self._state.log.reason()})"
            )
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
