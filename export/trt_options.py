"""The options of an engine's build, and the trtexec line that does the same."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.trt_graph import Request, read_request
from lfd.errors import UsageError

MAX_BATCH = 4096
HARDWARE = {"none": "none", "ampere_plus": "ampere+", "same_cc": "sameComputeCapability"}
"""Our word for a level of hardware compatibility to trtexec's."""
PROFILING = ("layer_names_only", "detailed", "none")


@dataclass(frozen=True)
class TrtOptions:
    """How to build an engine. There is no precision among them: that is in the ONNX file.

    Attributes:
        workspace_mib: Most memory that a layer may use for itself, in MiB; None leaves it to TensorRT (all there is).
        timing_cache: File with the times of kernels measured before, read if it is there and written after the build.
        optimization_level: 0 (built fast) to 5 (runs fast).
        version_compatible: Newer TensorRTs load it too; they must then be allowed to run the code that it holds.
        hardware_compatible: `none`; `ampere_plus`: any GPU since Ampere; `same_cc`: any GPU of this one's compute
            capability, where TensorRT has it (10.3 does not).
        dla_core: Run what can run there on this DLA, and the rest on the GPU.
        profiling: What the engine says of its layers. Only of `detailed` ones can the precision be read back.
        batch: Smallest, best and largest batch, for a file with an open batch; None for one with a fixed batch.
        tf32: Let fp32 convolutions multiply in TF32, which has 10 bits of mantissa.

    Raises:
        UsageError: A value out of its range.
    """

    workspace_mib: int | None = None
    timing_cache: Path | None = None
    optimization_level: int = 3
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere_plus", "same_cc"] = "none"
    dla_core: int | None = None
    profiling: Literal["layer_names_only", "detailed", "none"] = "detailed"
    batch: tuple[int, int, int] | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        _check(
            self.workspace_mib is None or self.workspace_mib >= 1, f"workspace {self.workspace_mib} MiB", "1 or more"
        )
        _check(0 <= self.optimization_level <= 5, f"optimization level {self.optimization_level}", "0 to 5")
        _check(self.dla_core is None or self.dla_core >= 0, f"DLA core {self.dla_core}", "0 or more")
        _check(self.hardware_compatible in HARDWARE, repr(self.hardware_compatible), " or ".join(HARDWARE))
        _check(self.profiling in PROFILING, repr(self.profiling), " or ".join(PROFILING))
        if self.batch is not None:
            low, best, high = self.batch
            _check(
                1 <= low <= best <= high <= MAX_BATCH, f"batch {self.batch}", f"1 <= MIN <= OPT <= MAX <= {MAX_BATCH}"
            )
        if self.dla_core is not None and self.batch is not None:
            _check(
                self.batch[0] == self.batch[2], f"batch {self.batch} on a DLA", "one batch, which is all a DLA takes"
            )


def parse_batch(text: str) -> tuple[int, int, int]:
    """Read `MIN:OPT:MAX` or `N` as the smallest, best and largest batch.

    Raises:
        UsageError: Anything else.
    """
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdecimal() and len(part) < 9 for part in parts):
        raise UsageError(f"batch {text!r}; expected MIN:OPT:MAX, such as 1:4:8, or one number")
    numbers = [int(part) for part in parts] * (3 // len(parts))
    return numbers[0], numbers[1], numbers[2]


def batch_of(request: Request, options: TrtOptions) -> tuple[int, int, int]:
    """Return the smallest, best and largest batch of the engine.

    Raises:
        UsageError: A range for a file with a fixed batch, or none for one without.
    """
    fixed = request.input_shape[0]
    if fixed is None and options.batch is None:
        raise UsageError(f"{request.path}: leaves the batch open; give its range, such as --batch 1:4:8")
    if fixed is not None and options.batch not in (None, (fixed,) * 3):
        raise UsageError(
            f"{request.path}: has a fixed batch of {fixed}; leave --batch away, or export it with an open one"
        )
    return options.batch or (fixed or 1,) * 3


def trtexec_line(onnx: Path | Request, out: Path, options: TrtOptions) -> str:
    """Return the trtexec command that builds the same engine, for either version.

    TensorRT 11 takes `--stronglyTyped` and does nothing about it, as it knows no other networks.

    Args:
        onnx: The file, or what was read from it.
        out: The engine.
        options: Of the build.

    Raises:
        UsageError: The batch does not fit the file.
        ModelError: The file is broken, or not one of ours.
    """
    request = read_request(onnx) if isinstance(onnx, Path) else onnx
    batch = batch_of(request, options)
    words = ["trtexec", f"--onnx={request.path}", f"--saveEngine={out}", "--stronglyTyped", "--skipInference"]
    if request.input_shape[0] is None:
        height, width, channels = request.input_shape[1:]
        for word, size in zip(("min", "opt", "max"), batch, strict=True):
            words.append(f"--{word}Shapes={request.input_name}:{size}x{height}x{width}x{channels}")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    words.append(f"--builderOptimizationLevel={options.optimization_level}")
    words.append(f"--profilingVerbosity={options.profiling}")
    if not options.tf32:
        words.append("--noTF32")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware_compatible != "none":
        words.append(f"--hardwareCompatibilityLevel={HARDWARE[options.hardware_compatible]}")
    if options.dla_core is not None:
        words += [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]
    return shlex.join(words)


def _check(condition: bool, found: str, expected: str) -> None:
    if not condition:
        raise UsageError(f"{found}; expected {expected}")
