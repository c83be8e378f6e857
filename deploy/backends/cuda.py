"""TensorRT and CUDA without torch: asked for in the order that does not crash, every call's answer looked at."""

from __future__ import annotations

import platform
import re
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from deploy.artifact import Accelerator
from lfd.errors import MissingDependencyError, ModelError, require

OLDEST = (10, 3)
"""What JetPack 6 carries. Older ones lack strongly typed networks as the parser fills them now."""
MAX_REASON = 400

INSTALL = (
    "Fix: pip install 'lfd-toolkit[trt]' on the machine with the NVIDIA GPU that the engine is to run on; on a Jetson "
    "use JetPack's own TensorRT: apt install python3-libnvinfer, in a venv made with --system-site-packages, and pip "
    "install cuda-bindings"
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
        raise MissingDependencyError(f"TensorRT {reason}; engines are built and run with it. {INSTALL}") from error
    version = str(getattr(trt, "__version__", "0"))
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise MissingDependencyError(f"TensorRT {version} is too old; expected 10.3 or newer. {INSTALL}")
    return trt


def require_cuda() -> ModuleType:
    """Import CUDA's runtime API.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
    """
    return require("cuda.bindings.runtime", "trt")


def find_gpu(trt: Any) -> Accelerator:
    """Describe the GPU that CUDA gives this process first.

    To be called before any object of TensorRT is made: `trt.Runtime` and `trt.Builder` do not raise without a GPU, and
    the next call ends the process.

    Args:
        trt: The module.

    Raises:
        MissingDependencyError: There is no GPU, CUDA cannot use it, or cuda-bindings is not installed.
    """
    cuda: Any = require_cuda()
    fix = "an engine is built and run on the GPU that it is for. Fix: run this on that machine"
    try:
        count = checked(cuda, cuda.cudaGetDeviceCount(), "to count GPUs")
        if count < 1:
            raise MissingDependencyError(f"CUDA finds no NVIDIA GPU here; {fix}, without an empty CUDA_VISIBLE_DEVICES")
        kinds = cuda.cudaDeviceAttr
        major, minor = (
            checked(cuda, cuda.cudaDeviceGetAttribute(kind, 0), "to ask for the compute capability")
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        )
        name = checked(cuda, cuda.cudaGetDeviceProperties(0), "to ask for the GPU's name").name
    except ModelError as error:
        raise MissingDependencyError(
            f"CUDA finds no NVIDIA GPU here ({error}); {fix}; nvidia-smi shows whether its driver works"
        ) from error
    return Accelerator(
        name=name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name),
        compute_capability=(int(major), int(minor)),
        tensorrt=str(trt.__version__),
        platform=f"{platform.system()}-{platform.machine()}".lower(),
    )


def checked(cuda: Any, answer: Any, wanted: str) -> Any:
    """Return what a CUDA call gives, None for one that gives nothing.

    Args:
        cuda: The module.
        answer: The call's (error, value, ...).
        wanted: What it was for, such as "to allocate 8 bytes".

    Raises:
        ModelError: It failed, or an earlier call that was still going on; CUDA tells late.
    """
    error, *values = answer
    if int(error) != 0:
        text = cuda.cudaGetErrorString(error)[1]
        reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        raise ModelError(f"CUDA failed {wanted} ({getattr(error, 'name', error)}: {reason})")
    return values[0] if values else None


class ErrorLog:
    """What TensorRT complains about, from whichever of its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: list[str] = []

    def add(self, message: str) -> None:
        """Take a complaint."""
        with self._lock:
            self._errors.append(message)

    def reason(self) -> str:
        """Return the complaints, each once, in one line."""
        with self._lock:
            text = "; ".join(dict.fromkeys(self._errors)) or "it gave no reason"
        text = " ".join(text.split())
        return text if len(text) <= MAX_REASON else text[:MAX_REASON] + " ..."


def make_logger(trt: Any, add: Callable[[str], None]) -> Any:
    """Return a logger for TensorRT's objects that hands errors on; the rest is about TensorRT's insides."""
    severe = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for the exception."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in severe:
                add(msg)

    return Log()
