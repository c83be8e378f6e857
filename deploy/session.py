"""One protocol for every runtime that can execute a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import BuildInfo, check_model_file
from deploy.backends import ort
from lfd.errors import ModelError, unknown
from lfd.preprocess import Image
from lfd.spec import ModelSpec


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


BACKENDS: dict[str, Callable[[Path, int], InferenceSession]] = {"ort": ort.OrtSession}


def open_session(path: Path, backend: str = "ort", threads: int = 0) -> InferenceSession:
    """Load a model.

    Args:
        path: An .onnx file with a ModelSpec in it.
        backend: A name in BACKENDS.
        threads: Threads for one inference; 0 leaves it to the runtime.

    Raises:
        ModelError: The file is missing, broken, or not one of ours.
        UsageError: There is no such backend.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    check_model_file(path)
    return BACKENDS[backend](path, threads)


def class_map(session: InferenceSession, image: Image) -> Image:
    """Run one picture that has the model's size and return its (H, W) uint8 class map.

    Raises:
        ModelError: The picture does not fit, the runtime failed, or a class comes out that the spec does not name.
    """
    out = session.run(image[None])
    if session.spec.output == "logits":
        out = out.argmax(1)
    classes = np.asarray(out[0], dtype=np.uint8)
    if (largest := int(classes.max())) >= len(session.spec.labels):
        raise ModelError(
            f"the model gave class {largest}, but its ModelSpec names {len(session.spec.labels)} classes. "
            "Fix: export again"
        )
    return classes
