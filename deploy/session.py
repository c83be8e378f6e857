"""One protocol for every runtime that can execute a model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import BuildInfo, check_model_file
from deploy.backends import openvino, ort
from lfd.errors import ModelError, unknown
from lfd.preprocess import Image
from lfd.spec import MAX_JSON_BYTES, ModelSpec

INT8_TARGET_KEY = "lfd_int8_target"
"""Key under which a quantised file says which runtime its Q/DQ pairs are for: `ort`, `openvino` or `trt`."""
ENGINES = (".engine", ".plan")


class InferenceSession(Protocol):
    """A loaded model. Not for two threads at once."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def build(self) -> BuildInfo: ...

    def run(self, batch: Image) -> NDArray[Any]:
        """Run the model.

        Args:
            batch: (B, H, W, 3) BGR uint8 at the spec's size, contiguous.

        Returns:
            By the spec's output: (B, H, W) uint8 classes or (B, K, H, W) float32 logits. The
            array is valid until the next call.

        Raises:
            ModelError: The batch does not fit, or the runtime failed.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> InferenceSession: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


BACKENDS: dict[str, Callable[[Path, int], InferenceSession]] = {
    "ort": ort.OrtSession,
    "openvino": openvino.OpenVinoSession,
    # A name of its own: bf16 is another arithmetic, with other class maps, on the same file. By its name it can be
    # asked for, measured beside the others and found in a report, and every caller can pass it on.
    "openvino-bf16": partial(openvino.OpenVinoSession, precision="bf16"),
}


def open_session(path: Path, backend: str | None = None, threads: int = 0) -> InferenceSession:
    """Load a model.

    Args:
        path: An .onnx file with a ModelSpec in it.
        backend: A name in BACKENDS; None takes the file's own, see `choose_backend`.
        threads: Threads for one inference; 0 leaves it to the runtime.

    Raises:
        ModelError: The file is missing, broken, not one of ours, or was quantised for another runtime.
        UsageError: There is no such backend.
    """
    return BACKENDS[choose_backend(path, backend)](path, threads)


def choose_backend(path: Path, backend: str | None = None) -> str:
    """Return the name in BACKENDS of what will run a file.

    Where none is asked for it is the runtime that the file was quantised for, and `ort` for any other file. `ort` does
    not take what was quantised for another: symmetric int8 is two to three times slower there than fp32. (The class in
    `deploy.backends` does, to see how accurate it is.) OpenVINO runs every flavour in int8, at the same speed.

    Raises:
        ModelError: The file is missing, a TensorRT engine, or was quantised for another runtime.
        UsageError: There is no such backend.
    """
    if backend is not None and backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    check_model_file(path)
    if path.suffix in ENGINES:
        raise ModelError(
            f"{path}: a TensorRT engine, for which this version has no backend; expected the .onnx file it was built "
            "from, or trtexec, DeepStream or Triton to run it"
        )
    target = int8_target(path)
    chosen = backend or (target if target in BACKENDS else "ort")
    if chosen == "ort" and target not in (None, "ort"):
        raise ModelError(
            f"{path}: was quantised for {target!r}, and is slower on ONNX Runtime than in fp32. "
            "Fix: take the backend openvino, or quantise it with lfd-export int8 --target ort"
        )
    return chosen


def int8_target(path: Path) -> str | None:
    """Return the runtime that a file was quantised for; None when it does not say, or is no ONNX file.

    Read off the protocol buffer (ModelProto.metadata_props is field 14, of key 1 and value 2) before any runtime
    has parsed the file, since it says which one should. The weights are skipped, not read.
    """
    with path.open("rb") as file:
        for number, length in _blocks(file, path.stat().st_size):
            if number == 14 and length <= MAX_JSON_BYTES:
                entry = io.BytesIO(file.read(length))
                pair = {part: entry.read(size) for part, size in _blocks(entry, length)}
                if pair.get(1) == INT8_TARGET_KEY.encode():
                    return pair.get(2, b"").decode(errors="replace")[:32]
    return None


def _blocks(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield number and length of a protocol buffer's length-delimited fields, with the file standing at each.

    See https://protobuf.dev/programming-guides/encoding. Ends where there is none: a model has no thousands of fields.
    """
    for _ in range(10_000):
        tag = _varint(file)
        kind = tag & 7
        length = _varint(file) if kind == 2 else {0: 0, 1: 8, 5: 4}.get(kind, end)
        if kind == 0:
            _varint(file)
        after = file.tell() + length
        if after > end or not tag:
            return
        if kind == 2:
            yield tag >> 3, length
        file.seek(after)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = (file.read(1) or b"\0")[0]
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value


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
    classes = np.asarray(found.argmax(0) if spec.output == "logits" else found, dtype=np.uint8)
    if (largest := int(classes.max())) >= len(spec.labels):
        raise ModelError(
            f"the model gave class {largest}, but its ModelSpec names {len(spec.labels)} classes. Fix: export again"
        )
    return classes
