"""A model in any form as a function from a frame to a class map; torch-free for what is a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import read_engine_info, read_spec
from deploy.session import ENGINES, as_class_map, open_session
from lfd.errors import ModelError, UsageError, require
from lfd.preprocess import Image
from lfd.spec import ModelSpec

FILES = (".onnx", *ENGINES)
"""Suffixes of models that have one input size, and that a backend runs."""

MAX_BATCH = 4096
DYNAMIC: Literal["dynamic"] = "dynamic"
BATCH_KEY = "frames_per_run"
"""In `ModelSpec.provenance`, whose `batch` is the training's: how many frames a run takes, or DYNAMIC; else one."""


def _nothing() -> None: ...


def parse_batch(text: str) -> int | Literal["dynamic"]:
    """Read `N` or `dynamic`.

    Raises:
        UsageError: Anything else.
    """
    if text == "dynamic":
        return "dynamic"
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= MAX_BATCH):
        raise UsageError(f"batch {text!r}; expected 1 to {MAX_BATCH}, or {DYNAMIC}")
    return int(text)


@dataclass(frozen=True)
class Runnable:
    """A model as a function from a fitted frame to a class map, and what runs it; a context manager that frees it."""

    predict: Callable[[Image], Image]
    spec: ModelSpec
    runtime: str = "PyTorch CPU, fp32"
    close: Callable[[], None] = _nothing

    def __enter__(self) -> Runnable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Places:
    """One frame at a time through a model that takes several.

    Each comes to the next place, beside earlier ones: a graph that mixes its frames, or that is right in its first
    place only, then differs.
    """

    def __init__(self, run: Callable[[Image], NDArray[Any]], spec: ModelSpec, places: int) -> None:
        self._run, self._spec, self._next = run, spec, 0
        self._frames = np.zeros((places, *spec.preprocess.size_hw, 3), np.uint8)

    def __call__(self, frame: Image) -> Image:
        at, self._next = self._next, (self._next + 1) % len(self._frames)
        self._frames[at] = frame
        return as_class_map(self._run(self._frames)[at], self._spec)


def open_file(path: Path, backend: str | None = None, threads: int = 0) -> Runnable:
    """Open an .onnx file or an engine.

    Args:
        path: The file.
        backend: A name in `deploy.session.BACKENDS`; None takes the file's own.
        threads: For one inference; 0 leaves it to the runtime.

    Raises:
        ModelError: It does not fit.
        UsageError: There is no such backend, or it does not take such files.
        MissingDependencyError: The runtime is not installed, or there is no GPU for it.
    """
    session = open_session(path, backend, threads)
    try:
        places = frames_per_run(path, session.spec)
    except ModelError:
        session.close()
        raise
    runtime = f"{session.build.backend}, {session.build.precision}"
    return Runnable(_Places(session.run, session.spec, places), session.spec, runtime, session.close)


def open_as_written(path: Path, threads: int = 0) -> Runnable:
    """Open an .onnx file for another runtime: what its Q/DQ pairs say, computed in float by ONNX Runtime.

    Raises:
        ModelError: It has no ModelSpec.
        MissingDependencyError: onnxruntime is not installed.
    """
    ort: Any = require("onnxruntime", "export")
    options = float_options()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    spec = read_spec(session.get_modelmeta().custom_metadata_map, path)
    name = session.get_inputs()[0].name

    def run(batch: Image) -> NDArray[Any]:
        return np.asarray(session.run(None, {name: batch})[0])

    return Runnable(_Places(run, spec, frames_per_run(path, spec)), spec, "as written, in float")


def float_options() -> Any:
    """Return options by which ONNX Runtime computes Q/DQ pairs as they are written, in float, and fuses none.

    What is for TensorRT is scored so: with its own kernels it is slow, and rejects scales in fp16.
    """
    ort: Any = require("onnxruntime", "export")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 4
    return options


def frames_per_run(path: Path, spec: ModelSpec) -> int:
    """Return how many frames to run at once: what the file takes, and two where it takes that among others.

    Raises:
        ModelError: Its specification names no batch, or the engine's record is broken.
    """
    batch = spec.provenance.get(BATCH_KEY, 1)
    if batch == DYNAMIC:
        if path.suffix not in ENGINES:
            return 2
        low, _, high = read_engine_info(path).batch
        return min(max(low, 2), high)
    if not isinstance(batch, int) or batch is True or not 1 <= batch <= MAX_BATCH:
        raise ModelError(f"{path}: its ModelSpec says a batch of {batch!r}; expected 1 to {MAX_BATCH}")
    return batch
