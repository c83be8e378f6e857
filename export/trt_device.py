"""TensorRT and the GPU, asked for in the order that does not crash."""

from __future__ import annotations

import platform
import re
from types import ModuleType
from typing import Any

from deploy.artifact import Accelerator
from lfd.errors import ExportError, MissingDependencyError, require

OLDEST = (10, 3)
"""What JetPack 6 carries. Older ones lack strongly typed networks as the parser fills them now."""

INSTALL = (
    "Fix: pip install 'lfd-toolkit[trt]' on the machine with the NVIDIA GPU that the engine is to run on; on a Jetson "
    "use JetPack's own TensorRT: apt install python3-libnvinfer, in a venv made with --system-site-packages"
)


def require_tensorrt() -> ModuleType:
    """Import TensorRT.

    Raises:
        MissingDependencyError: It is not installed, or too old; the message says what to install.
    """
    try:
        trt = require("tensorrt", "trt")
    except (MissingDependencyError, ImportError, OSError) as error:  # a wheel without its libraries, or its driver
        reason = "is not installed" if isinstance(error, MissingDependencyError) else f"does not load ({error})"
        raise MissingDependencyError(f"TensorRT {reason}; an engine can only be built with it. {INSTALL}") from error
    version = str(getattr(trt, "__version__", "0"))
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise MissingDependencyError(f"TensorRT {version} is too old; expected 10.3 or newer. {INSTALL}")
    return trt


def find_gpu(trt: Any) -> Accelerator:
    """Describe the GPU that CUDA gives this process first.

    To be called before any object of TensorRT is made: `trt.Runtime` and `trt.Builder` do not raise without a GPU, and
    the next call ends the process.

    Args:
        trt: The module.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        ExportError: There is no GPU, or CUDA cannot use it.
    """
    cuda = require("cuda.bindings.runtime", "trt")

    def ask(answer: Any) -> Any:
        error, *values = answer
        if int(error) != 0:
            text = cuda.cudaGetErrorString(error)[1]
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise ExportError(
                f"CUDA finds no NVIDIA GPU here ({getattr(error, 'name', error)}: {reason}); an engine is built on the "
                "GPU that it is to run on. Fix: run this on that machine; nvidia-smi shows whether its driver works"
            )
        return values[0]

    if ask(cuda.cudaGetDeviceCount()) < 1:
        raise ExportError(
            "CUDA finds no NVIDIA GPU here; an engine is built on the GPU that it is to run on. "
            "Fix: run this on that machine, without an empty CUDA_VISIBLE_DEVICES"
        )
    kinds = cuda.cudaDeviceAttr
    major = ask(cuda.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMajor, 0))
    minor = ask(cuda.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMinor, 0))
    name = ask(cuda.cudaGetDeviceProperties(0)).name
    return Accelerator(
        name=name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name),
        compute_capability=(int(major), int(minor)),
        tensorrt=str(trt.__version__),
        platform=f"{platform.system()}-{platform.machine()}".lower(),
    )
