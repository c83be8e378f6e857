"""ONNX to a TensorRT engine, on TensorRT 10 and 11 by one path, and the proof that it has the precision asked for.

Every network is strongly typed: what is computed in which type stands in the ONNX file (fp16 weights, Q/DQ pairs).
On 10 that takes a flag, which 11 accepts and ignores. Names of the API are those that 10.3 and 11.4 share; the one that
10.3 lacks is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.artifact import BuildInfo, EngineInfo, engine_info_path
from deploy.backends.cuda import find_gpu, require_tensorrt
from deploy.session import ENGINES
from export.trt_build import Build, Progress
from export.trt_graph import Request, read_request
from export.trt_layers import Layer, Outcome, check, compare, read_layers
from export.trt_options import TrtOptions, batch_of, trtexec_line
from lfd.errors import ExportError, UsageError
from lfd.files import replacing

__all__ = ["EngineReport", "Progress", "TrtOptions", "build_engine", "trtexec_line"]


@dataclass(frozen=True)
class EngineReport:
    """An engine as built.

    Attributes:
        path: The engine: as trtexec, DeepStream and Triton load it.
        info: What lies beside it.
        size: Of the engine, in bytes.
        seconds: The build took.
        layers: Its layers; empty when their names only, or nothing, was asked for.
        outcome: Precisions asked for and found; None when they were not read back.
    """

    path: Path
    info: EngineInfo
    size: int
    seconds: float
    layers: tuple[Layer, ...]
    outcome: Outcome | None

    def __str__(self) -> str:
        on, (height, width) = self.info.built_on, self.info.spec.preprocess.size_hw
        major, minor = on.compute_capability
        batch = "-".join(str(n) for n in sorted({self.info.batch[0], self.info.batch[2]}))
        found = self.outcome or f"precision not read back, since profiling is {self.info.options['profiling']}"
        return (
            f"{self.path}: {self.info.spec.model}, {height}x{width}, batch {batch}, {self.info.build.precision}, "
            f"{self.size / 1e6:.1f} MB, built in {self.seconds:.0f} s for TensorRT {on.tensorrt} on {on.name} "
            f"(SM {major}.{minor})\n{found}"
        )


def build_engine(
    onnx: Path | Request, out: Path, options: TrtOptions, progress: Callable[[Progress], None] | None = None
) -> EngineReport:
    """Build an engine, check its precision, and write it with its record beside it; all of it or nothing.

    Args:
        onnx: A file of lfd-export in fp32, fp16 or with Q/DQ pairs for TensorRT, or what was read from it.
        out: The engine, .engine or .plan. A caller who keeps an older one there checks for it before.
        options: How to build.
        progress: Called from this thread about twice a second, and when the build ends.

    Raises:
        UsageError: Options that do not fit the file or this GPU.
        ModelError: The file is broken, or not one of ours.
        ExportError: TensorRT cannot build it, or it does not compute as asked.
        MissingDependencyError: TensorRT, cuda-bindings or a GPU is missing.
        KeyboardInterrupt: Ctrl-C; the build was stopped, and nothing is left of it.
    """
    if out.suffix not in ENGINES:
        raise UsageError(f"{out}: expected a name that ends in {' or '.join(ENGINES)}")
    if options.timing_cache in (out, engine_info_path(out)):
        raise UsageError(f"timing cache {options.timing_cache} is one of the engine's own files; choose another name")
    request = read_request(onnx) if isinstance(onnx, Path) else onnx
    batch = batch_of(request, options)
    trt = require_tensorrt()
    here = find_gpu(trt)
    start = time.monotonic()
    build = Build(trt, here, request, options)
    plan = build.run(batch, progress)
    layers: tuple[Layer, ...] = ()
    outcome = None
    if options.profiling == "detailed":
        layers = read_layers(build.inspect(plan), request.convolutions)
        outcome = compare(request.convolutions, layers)
        check(outcome, str(out))
        if options.dla_core is not None and not outcome.on_dla:
            raise ExportError(
                f"{out} was not written: no layer runs on the DLA, which takes fp16 and fixed shapes. {outcome}. "
                "Fix: build from the fp16 file, or without a DLA"
            )
    seconds = time.monotonic() - start
    info = EngineInfo(
        spec=request.spec,
        build=BuildInfo(
            backend="tensorrt",
            precision=request.precision,
            onnx_sha256=request.sha256,
            versions={"tensorrt": here.tensorrt},
            device=here.name,
        ),
        built_on=here,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        batch=batch,
        onnx=request.path.name,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        options={
            "workspace_mib": options.workspace_mib,
            "optimization_level": options.optimization_level,
            "dla_core": options.dla_core,
            "profiling": options.profiling,
            "tf32": options.tf32,
        },
        convolutions=dict(outcome.ran) if outcome else {},
    )
    _write(out, plan, info, options.timing_cache, build.timing_cache())
    return EngineReport(out, info, plan.nbytes, seconds, layers, outcome)


def _write(out: Path, plan: memoryview, info: EngineInfo, cache_path: Path | None, cache: bytes | None) -> None:
    """Write engine, record and timing cache aside, then name them.

    The engine is named last: a power cut between the names leaves no engine without its record. Should it leave an
    older engine beside the new record, the record's hash tells.
    """
    with contextlib.ExitStack() as stack:
        aside = stack.enter_context(replacing(out))
        beside = stack.enter_context(replacing(engine_info_path(out)))
        if cache_path is not None and cache is not None:
            stack.enter_context(replacing(cache_path)).write_bytes(cache)
        aside.write_bytes(plan)
        beside.write_text(info.to_json(), encoding="utf-8")
