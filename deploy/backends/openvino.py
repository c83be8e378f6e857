"""OpenVINO on the CPU, in fp32 or bf16; what a file has between Q/DQ pairs runs in int8 under either."""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import PRECISION_KEY, BuildInfo, read_spec, sha256
from deploy.backends.contract import Form, check_batch, check_graph
from lfd.errors import ModelError, UsageError, require
from lfd.preprocess import Image
from lfd.spec import METADATA_KEY

PRECISIONS = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
"""OpenVINO's names to ours, the lowest first."""
ARITHMETIC = ("Convolution", "Deconvolution", "MatMul", "FullyConnected")
NOISE = ("Exception from ", "Check '", "FrontEnd API failed")


class OpenVinoSession:
    """An `InferenceSession` on OpenVINO.

    Args:
        path: The .onnx file.
        threads: Threads of all inferences; 0 takes one a physical core.
        parallel: Inferences that may go on side by side; each has as many threads, what is left over of an odd number
            has nothing to do.
        precision: Of everything that is not int8 by the file. It is always told: left alone, OpenVINO takes bf16
            on processors that have it, and class maps then differ from the network's.

    Raises:
        ModelError: The file cannot be loaded, has no ModelSpec, is not a frame-to-map graph, or says int8 and
            does not run in it.
        UsageError: This processor has no bf16.
        MissingDependencyError: openvino is not installed.
    """

    def __init__(
        self, path: Path, threads: int = 0, parallel: int = 1, precision: Literal["f32", "bf16"] = "f32"
    ) -> None:
        # Importing OpenVINO reports to its maker, through a module that it does without where there is none.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        self._openvino = openvino = require("openvino", "openvino")
        try:
            # By the ONNX reader alone: `read_model` tries them all, takes OpenVINO's own format under any name,
            # and TensorFlow's reader writes to stderr by itself.
            reader = require("openvino.frontend", "openvino").FrontEndManager().load_by_framework("onnx")
            model = reader.convert(reader.load(str(path)))
        except Exception as error:  # the reader's own have no common base, and are no RuntimeErrors
            raise ModelError(
                f"{path}: OpenVINO cannot load it ({_reason(error)}). Fix: export the model again"
            ) from error
        metadata = {
            key: str(model.get_rt_info(["framework", key]).astype(str))
            for key in (METADATA_KEY, PRECISION_KEY)
            if model.has_rt_info(["framework", key])
        }
        self.spec, self.parallel = read_spec(metadata, path), parallel
        self._here: Any = threading.local()  # a request of its own for each thread, made when it first runs
        self.batch = check_graph(path, self.spec, [_form(i) for i in model.inputs], [_form(o) for o in model.outputs])
        core = _core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError("this processor has no bf16, and OpenVINO would take f32. Fix: take the backend openvino")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": parallel,
            # Threads nailed to cores wait there for decoder and encoder. LRASPP-MobileNetV3-small 180x240, two busy
            # cores, median ms with / without: f32 4.9 / 4.6, bf16 2.9 / 2.8.
            "ENABLE_CPU_PINNING": False,
            "CACHE_DIR": "",  # compiled code from elsewhere is never loaded
        }
        try:
            self._compiled = core.compile_model(model, "CPU", settings)
            self._here.request = self._compiled.create_infer_request()  # what fails, fails here
        except RuntimeError as error:
            raise ModelError(f"{path}: OpenVINO cannot compile it ({_reason(error)}). Fix: export it again") from error
        ran = self._ran() or PRECISIONS[precision]
        if metadata.get(PRECISION_KEY) == "int8" and ran != "int8":
            raise ModelError(f"{path}: is int8, but OpenVINO runs it in {ran} here. Fix: take the file in fp32")
        self.build = BuildInfo(
            backend=f"openvino CPU {precision}",
            precision=ran,
            onnx_sha256=sha256(path),
            versions={"openvino": openvino.__version__.partition("-")[0]},
            device=core.get_property("CPU", "FULL_DEVICE_NAME"),
        )

    def _ran(self) -> str | None:
        """Return the lowest precision in which the compiled network multiplies; None when it does not."""
        infos = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ops()]
        types = {i["runtimePrecision"].astype(str) for i in infos if i["layerType"].astype(str) in ARITHMETIC}
        return next((ours for theirs, ours in PRECISIONS.items() if theirs in types), None)

    def run(self, batch: Image) -> NDArray[Any]:
        """Run the model; see `deploy.session.InferenceSession.run`. Neither input nor output is copied."""
        check_batch(batch, self.spec, self.batch)
        if batch.dtype != np.uint8:  # OpenVINO would convert it, and wrap what is out of range
            raise ModelError(f"a batch of {batch.dtype}; this model takes uint8")
        frame = np.require(batch, requirements=("C", "W"))  # held until the end: the tensor does not hold it
        try:
            # `infer([batch], share_inputs=True, share_outputs=True)` does the same and takes 0.13 ms longer.
            request = getattr(self._here, "request", None) or self._compiled.create_infer_request()
            self._here.request = request
            request.set_input_tensor(self._openvino.Tensor(frame, shared_memory=True))
            request.infer()
            out: NDArray[Any] = request.get_output_tensor().data
        except (RuntimeError, AttributeError) as error:
            raise ModelError(f"OpenVINO failed while running: {_reason(error)}") from error
        return out

    def close(self) -> None:
        """Free the model's memory; `run` must not be called after."""
        self._here = self._compiled = None

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@functools.cache
def _core() -> Any:
    """Return the process's one Core, which lives as long as the process does.

    Where a processor has AMX, OpenVINO's CPU plugin gives the thread that first uses it another stack for signals,
    and frees that stack with the last reference to Core and models. In another thread's hands, that left the first
    thread, most often the main one, without a stack for signals: the next Ctrl-C ended the process by SIGSEGV.
    """
    return require("openvino", "openvino").Core()


def _form(port: Any) -> Form:
    """Return the type of an input or output, in OpenVINO's word, and its shape; None for an open side."""
    kind: str = port.get_element_type().get_type_name()
    if (shape := port.get_partial_shape()).rank.is_dynamic:
        return kind, []
    return kind, [side.get_length() if side.is_static else None for side in shape]


def _reason(error: Exception) -> str:
    """Return what OpenVINO says, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join([line for line in lines if not line.startswith(NOISE)] or lines).strip()[:200]
