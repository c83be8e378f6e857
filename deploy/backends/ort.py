"""ONNX Runtime on the CPU."""

from __future__ import annotations

import platform
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from deploy.artifact import PRECISION_KEY, BuildInfo, read_spec, sha256
from deploy.backends.contract import Form, check_batch, check_graph
from deploy.environment import usable_cores
from lfd.errors import ModelError, require
from lfd.preprocess import Image

CPU = "CPUExecutionProvider"


class OrtSession:
    """An `InferenceSession` on ONNX Runtime.

    Args:
        path: The .onnx file.
        threads: Threads of all inferences; 0 takes one a physical core, and side by side one a core that the system
            counts.
        parallel: Inferences that may go on side by side, sharing them.

    Raises:
        ModelError: The file cannot be loaded, has no ModelSpec, or is not a frame-to-map graph.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int = 0, parallel: int = 1) -> None:
        ort = require("onnxruntime", "deploy")
        self.parallel = parallel
        # Inferences side by side share a session's pool, which has one thread less than it is told, for who calls: they
        # are several. 0 is its own rule; side by side it must be known how many cores there are.
        told = threads if parallel == 1 else max(1, (threads or usable_cores()) - parallel + 1)
        options = make_options(ort, told)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[CPU])
        except Exception as error:  # pybind maps no common base: Fail, InvalidGraph, InvalidProtobuf, RuntimeError
            raise ModelError(
                f"{path}: ONNX Runtime cannot load it ({reason(error)}). Fix: export the model again"
            ) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.spec = read_spec(metadata, path)
        self.build = BuildInfo(
            backend=f"onnxruntime {CPU}",
            precision=metadata.get(PRECISION_KEY, "fp32"),
            onnx_sha256=sha256(path),
            versions={"onnxruntime": ort.__version__},
            device=platform.processor() or platform.machine(),
        )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.batch = check_graph(path, self.spec, [_form(i) for i in inputs], [_form(o) for o in outputs])
        self._input = inputs[0].name

    def run(self, batch: Image) -> NDArray[Any]:
        """Run the model; see `deploy.session.InferenceSession.run`."""
        check_batch(batch, self.spec, self.batch)
        try:
            out: NDArray[Any] = self._session.run(None, {self._input: batch})[0]
        except Exception as error:  # pybind maps no common base
            raise ModelError(f"ONNX Runtime failed while running: {reason(error)}") from error
        return out

    def close(self) -> None:
        """Free the model's memory; `run` must not be called after."""
        self._session = None

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_options(ort: Any, threads: int) -> Any:
    """Return the options of a session that leaves the processor to others while it waits."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads that spin are quicker to wake, and take the cores from decoder, overlay and encoder.
    # LRASPP-MobileNetV3 480x360, two cores, frames a second, spinning / not: alone 63 / 54; a film to null://
    # 53 / 51, so that the pipeline keeps 0.84 / 0.91 to 0.95; beside one other busy process 17 / 31. Spinning
    # for 20 or 100 us only gives 50 and 25 to 28. Spinning that stops with each run (session.force_spinning_stop) is
    # quick alone, and no better in company: a film written 69 / 73, int8 DeepLabV3-R18 beside a busy process 18 / 22.
    # What else runs is unknown here: do not spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # its log repeats what the exception says
    return options


def reason(error: Exception) -> str:
    """Return what ONNX Runtime says, in one line."""
    return " ".join(str(error).split())[:200]


def _form(value: Any) -> Form:
    """Return type and shape of an input or output; an open dimension has a name here."""
    kind = {"tensor(uint8)": "u8", "tensor(float)": "f32"}.get(value.type, value.type)
    return kind, [side if isinstance(side, int) else None for side in value.shape]
