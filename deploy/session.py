"""One protocol for every runtime that can execute a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from deploy.artifact import INT8_TARGET_KEY, BuildInfo, check_model_file, int8_target
from deploy.backends import openvino, ort, ort_gpu, trt
from lfd.errors import ModelError, UsageError, unknown
from lfd.preprocess import Image
from lfd.spec import ModelSpec

__all__ = [
    "BACKENDS",
    "ENGINES",
    "INT8_TARGET_KEY",
    "InferenceSession",
    "as_class_map",
    "choose_backend",
    "class_map",
    "class_probabilities",
    "int8_target",
    "largest_class",
    "open_session",
    "row_bands",
]

ENGINES = (".engine", ".plan")
BAND_ROWS = 32
"""Of scores at once: 1.8 MB for 11 classes 1280 wide."""


class InferenceSession(Protocol):
    """A loaded model, for as many threads at once as `parallel` says."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def build(self) -> BuildInfo: ...

    @property
    def batch(self) -> int | None:
        """Frames that one run takes; None where it is open. An engine's range is checked by `run`."""
        ...

    @property
    def parallel(self) -> int:
        """How many threads may call `run` side by side."""
        ...

    def run(self, batch: Image) -> NDArray[Any]:
        """Run the model.

        Args:
            batch: (B, H, W, 3) BGR uint8 at the spec's size, contiguous.

        Returns:
            By the spec's output: (B, H, W) uint8 classes or (B, K, H, W) float32 logits. The
            array is valid until this thread's next call.

        Raises:
            ModelError: The batch does not fit, or the runtime failed.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> InferenceSession: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


BACKENDS: dict[str, Callable[[Path, int, int], InferenceSession]] = {
    "ort": ort.OrtSession,
    "openvino": openvino.OpenVinoSession,
    # A name of its own: bf16 is another arithmetic, with other class maps, on the same file. By its name it can be
    # asked for, measured beside the others and found in a report, and every caller can pass it on.
    "openvino-bf16": partial(openvino.OpenVinoSession, precision="bf16"),
    "ort-cuda": partial(ort_gpu.OrtGpuSession, provider=ort_gpu.CUDA),
    "ort-trt": partial(ort_gpu.OrtGpuSession, provider=ort_gpu.TENSORRT),
    "trt": trt.TrtSession,
}


QUANTISED_FOR: dict[str, tuple[str | None, ...]] = {
    "ort": (None, "ort"),
    "ort-cuda": (None,),
    "ort-trt": (None, "trt"),
}
"""What a file may be quantised for, if at all, to run on a backend; one that is not here takes every flavour."""

REFUSED = {
    "ort": "is slower on ONNX Runtime than in fp32. Fix: take the backend openvino, or quantise it with lfd-export "
    "int8 --target ort",
    "ort-cuda": "ONNX Runtime has no int8 convolution for CUDA. Fix: take the file in fp32 or fp16",
    "ort-trt": "TensorRT takes another flavour. Fix: quantise it with lfd-export int8 --target trt",
}


def open_session(path: Path, backend: str | None = None, threads: int = 0, parallel: int = 1) -> InferenceSession:
    """Load a model.

    Args:
        path: An .onnx file with a ModelSpec in it, or a TensorRT engine with its record beside it.
        backend: A name in BACKENDS; None takes the file's own, see `choose_backend`.
        threads: Threads of the model in all; 0 leaves it to the runtime.
        parallel: Inferences that may go on side by side, sharing the threads; a GPU takes them one by one all the same,
            see `InferenceSession.parallel`.

    Raises:
        ModelError: The file is missing, broken, not one of ours, or was quantised or built for another runtime or
            device.
        UsageError: There is no such backend, or it does not take such files.
        MissingDependencyError: The runtime is not installed, or there is no GPU for it.
    """
    return BACKENDS[choose_backend(path, backend)](path, threads, parallel)


def choose_backend(path: Path, backend: str | None = None) -> str:
    """Return the name in BACKENDS of what will run a file.

    An engine runs on `trt`. Where none is asked for it is the runtime that the file was quantised for, and `ort` for
    any other file. `ort` does not take what was quantised for another: symmetric int8 is two to three times slower
    there than fp32. (The class in `deploy.backends` does, to see how accurate it is.) OpenVINO runs every flavour in
    int8, at the same speed. `ort-cuda` takes none, as it has no int8 convolution and would compute in fp32; `ort-trt`
    takes TensorRT's.

    Raises:
        ModelError: The file is missing, or was quantised for another runtime.
        UsageError: There is no such backend, or it does not take such files.
    """
    if backend is not None and backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    check_model_file(path)
    if path.suffix in ENGINES:
        if backend not in (None, "trt"):
            raise UsageError(
                f"{path}: a TensorRT engine does not run on {backend}; expected the backend trt, or the .onnx file "
                "it was built from"
            )
        return "trt"
    if backend == "trt":
        raise UsageError(
            f"{path}: TensorRT runs engines. Fix: build one on the device with lfd-export trt {path} -o "
            f"{path.with_suffix('.engine').name}"
        )
    target = int8_target(path)
    if target == "trt" and backend is None:
        raise ModelError(
            f"{path}: was quantised for TensorRT, which runs engines. Fix: build one on the device with lfd-export "
            f"trt {path} -o {path.with_suffix('.engine').name}, or take the backend openvino"
        )
    chosen = backend or (target if target in BACKENDS else "ort")
    if target not in QUANTISED_FOR.get(chosen, (target,)):
        raise ModelError(f"{path}: was quantised for {target!r}, and {REFUSED[chosen]}")
    return chosen


def class_map(session: InferenceSession, image: Image) -> Image:
    """Run one picture that has the model's size and return its (H, W) uint8 class map.

    Raises:
        ModelError: The picture does not fit, the runtime failed, or a class comes out that the spec does not name.
    """
    return as_class_map(session.run(image[None])[0], session.spec)


def as_class_map(found: NDArray[Any], spec: ModelSpec) -> Image:
    """Return what a model gave for one picture, by its output (H, W) or (K, H, W), as (H, W) uint8 classes.

    Raises:
        ModelError: A class comes out that the spec does not name.
    """
    classes = largest_class(found) if spec.output == "logits" else np.asarray(found, dtype=np.uint8)
    if (largest := int(classes.max())) >= len(spec.labels):
        raise ModelError(
            f"the model gave class {largest}, but its ModelSpec names {len(spec.labels)} classes. Fix: export again"
        )
    return classes


def largest_class(scores: NDArray[np.float32]) -> Image:
    """Return the first of the largest of K <= 255 scores, (K, H, W), as (H, W) uint8 classes.

    Class by class in OpenCV, band by band, so that what is compared is still in the cache: a third of what `argmax(0)`
    takes.
    """
    classes = np.zeros(scores.shape[1:], np.uint8)
    for band in row_bands(scores):
        best, first = scores[0, band].copy(), classes[band]
        for index in range(1, len(scores)):
            larger = cv2.compare(scores[index, band], best, cv2.CMP_GT)
            cv2.max(scores[index, band], best, dst=best)
            # The later of two that were larger has the larger number.
            cv2.max(first, cv2.bitwise_and(larger, index), dst=first)  # type: ignore[call-overload]
    return classes


def class_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax over classes of (K, H, W) logits; 0 of all where a network in half precision overflowed."""
    with np.errstate(invalid="ignore"):
        odds: NDArray[np.float32] = np.exp(logits - logits.max(0))
        odds /= odds.sum(0)
    cv2.patchNaNs(odds.reshape(-1, odds.shape[-1]), 0.0)
    return odds


def row_bands(scores: NDArray[np.float32]) -> Iterator[slice]:
    """Yield slices of the rows of (K, H, W) scores that are worked on one after another."""
    for top in range(0, scores.shape[1], BAND_ROWS):
        yield slice(top, top + BAND_ROWS)
