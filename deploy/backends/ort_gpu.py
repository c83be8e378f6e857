"""ONNX Runtime on an NVIDIA GPU, by its CUDA or its TensorRT provider; what cannot run there does not run at all.

Left alone, ONNX Runtime falls to the CPU in three ways, and only logs it: the session, when the provider cannot be
initialised; single nodes, when it has no kernel for them; and a run, when it fails. All three are errors here.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import BuildInfo
from deploy.backends.contract import check_batch
from deploy.backends.ort import CPU, OrtSession, make_options, reason
from lfd.errors import LfdError, MissingDependencyError, ModelError, require
from lfd.preprocess import Image

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

PARTS = {CUDA: "cuda", TENSORRT: "tensorrt"}
"""The provider's library in the package."""
NEEDS = {
    CUDA: "pip install 'onnxruntime-gpu[cuda,cudnn]', and NVIDIA's driver",
    TENSORRT: "pip install 'onnxruntime-gpu[cuda,cudnn]', TensorRT 10 for the same CUDA, and NVIDIA's driver",
}
OTHERS = "or take the backend ort"


class OrtGpuSession(OrtSession):
    """An `InferenceSession` on ONNX Runtime with an NVIDIA GPU.

    Frames are copied into memory of our own on the GPU, the output into an array of our own, both bound once. The
    TensorRT provider's engine is not kept on disk, from where it would be loaded unchecked: it is built at every start,
    which takes minutes. What starts often is better built by lfd-export trt and run by the backend `trt`.

    Args:
        path: The .onnx file.
        threads: Threads of the CPU; no work of an inference is done there.
        parallel: Likewise; the GPU takes one inference at a time.
        provider: CUDA or TENSORRT.

    Raises:
        ModelError: The file cannot be loaded, is not a frame-to-map graph, or the provider cannot run all of it.
        MissingDependencyError: onnxruntime is not installed, has no such provider, or cannot initialise it.
    """

    def __init__(self, path: Path, threads: int = 0, parallel: int = 1, provider: str = CUDA) -> None:
        # What the file is, and whether it is sound, is known before a GPU is asked for anything.
        super().__init__(path, threads)
        self._ort: Any = require("onnxruntime", "deploy")
        self._path, self._provider = path, provider
        if provider not in self._ort.get_available_providers():
            raise MissingDependencyError(
                f"onnxruntime {self._ort.__version__} here is built without {provider}. Fix: pip uninstall "
                "onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' (both own the module onnxruntime; on a "
                f"Jetson NVIDIA's own wheel), {OTHERS}"
            )
        _load_libraries(self._ort, provider)
        if provider == TENSORRT:
            # It lets TensorRT multiply fp32 in TF32, with 10 bits of mantissa, and has no option to forbid that.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        try:
            session = self._start(threads, strict=True)
            if provider not in session.get_providers():
                raise self._absent("")
        except LfdError:
            raise
        except Exception as error:  # pybind maps no common base
            raise self._diagnosed(threads, error) from error
        self._session = session
        self._output = session.get_outputs()[0]
        self._out: NDArray[Any] = np.empty(0, np.uint8)
        self._bound = -1
        self.build = BuildInfo(
            backend=f"onnxruntime {provider}",
            precision=self.build.precision,
            onnx_sha256=self.build.onnx_sha256,
            versions=self.build.versions,
            device="cuda:0",
        )

    def _start(self, threads: int, strict: bool) -> Any:
        """Open a session on the provider; unless `strict`, one that runs on the CPU what it does not take."""
        options = make_options(self._ort, threads)
        if strict:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        else:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # `enable_fallback` is Python's own: it would open the session anew with the CPU alone, and print it.
        return self._ort.InferenceSession(
            str(self._path), options, providers=[(self._provider, self._settings())], enable_fallback=0
        )

    def _settings(self) -> dict[str, Any]:
        if self._provider == CUDA:
            return {"device_id": 0, "use_tf32": 0}  # by default it multiplies fp32 in TF32
        precision = self.build.precision
        return {
            "device_id": 0,
            # What is not between Q/DQ pairs in a file quantised for TensorRT is fp16.
            "trt_fp16_enable": precision in ("fp16", "int8"),
            "trt_int8_enable": precision == "int8",
            "trt_engine_cache_enable": False,
        }

    def _absent(self, why: str) -> MissingDependencyError:
        because = f" ({why})" if why else ""
        return MissingDependencyError(
            f"ONNX Runtime cannot initialise {self._provider}{because}. Fix: {NEEDS[self._provider]}; {OTHERS}"
        )

    def _diagnosed(self, threads: int, error: Exception) -> LfdError:
        """Return why a strict session could not be opened, which its message does not tell apart."""
        if fault := _library_fault(self._ort, self._provider):
            return self._absent(fault)
        try:
            session = self._start(threads, strict=False)
        except Exception:  # the same again, though nothing was forbidden
            failure = re.search(r"C\w+ failure \d+: [^;]+", str(error))  # after the place in its sources
            why = " ".join(failure[0].split()) if failure else reason(error)
            if failure and "out of memory" not in why:
                return self._absent(why)
            return ModelError(f"{self._path}: {self._provider} does not take it ({why}). Fix: {OTHERS[3:]}")
        if self._provider not in session.get_providers():
            return self._absent("")
        return ModelError(
            f"{self._path}: {self._provider} has no kernel for {_left_to_cpu(session)}, and ONNX Runtime would run it "
            f"on the CPU. Fix: pip install -U onnxruntime-gpu (ArgMax needs 1.21), {OTHERS}"
        )

    def run(self, batch: Image) -> NDArray[Any]:
        """Run the model; see `deploy.session.InferenceSession.run`."""
        check_batch(batch, self.spec, self.batch)
        if batch.dtype != np.uint8:
            raise ModelError(f"a batch of {batch.dtype}; this model takes uint8")
        try:
            if len(batch) != self._bound:
                self._bind(len(batch))
            self._frames.update_inplace(np.ascontiguousarray(batch))
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:  # pybind maps no common base
            raise ModelError(f"ONNX Runtime failed while running: {reason(error)}") from error
        return self._out

    def _bind(self, size: int) -> None:
        """Take memory for a batch of this size."""
        self._bound = -1
        shape = (*self.spec.preprocess.size_hw,)
        classes = (len(self.spec.labels),) if self.spec.output == "logits" else ()
        make = self._ort.OrtValue
        self._frames = make.ortvalue_from_shape_and_type([size, *shape, 3], np.uint8, "cuda", 0)
        self._out = np.empty((size, *classes, *shape), np.float32 if classes else np.uint8)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._input, self._frames)
        self._binding.bind_ortvalue_output(self._output.name, make.ortvalue_from_numpy(self._out))
        self._bound = size

    def close(self) -> None:
        """Free the model's memory; `run` must not be called after. An array that it returned stays readable."""
        self._binding = self._frames = None
        super().close()


def _load_libraries(ort: Any, provider: str) -> None:
    """Load what the provider needs from where pip puts it, which it does not search; what fails is found later."""
    ort.set_default_logger_severity(4)  # else it writes pages; what matters of them is in our errors
    if hasattr(ort, "preload_dlls"):  # 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    if provider == TENSORRT:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def _library_fault(ort: Any, provider: str) -> str:
    """Return what the loader says of a provider's library, which ONNX Runtime only logs; "" where it loads."""
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{PARTS[provider]}.so"
    if not library.is_file():  # another system, or a build of one's own
        return ""
    try:
        ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def _left_to_cpu(session: Any) -> str:
    """Return the kinds of nodes that run on the CPU; older versions of ONNX Runtime do not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return "some of its nodes"
    parts = session.get_provider_graph_assignment_info()
    return ", ".join(sorted({n.op_type for part in parts if part.ep_name == CPU for n in part.get_nodes()}))
