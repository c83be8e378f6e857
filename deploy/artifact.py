"""What is known of a model file: its ModelSpec and how it was built."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lfd.errors import ModelError
from lfd.spec import METADATA_KEY, ModelSpec

MAX_MODEL_BYTES = 2 << 30
"""ONNX is a protocol buffer: 2 GiB is its limit."""


@dataclass(frozen=True)
class BuildInfo:
    """How a file that runs came to be.

    Attributes:
        backend: Runtime and provider that executes it, such as "onnxruntime CPUExecutionProvider".
        precision: `fp32`, `fp16`, `int8`.
        onnx_sha256: Hash of the ONNX file.
        versions: Package name to version, of what matters to its speed and output.
        device: The processor it runs on.
    """

    backend: str
    precision: str
    onnx_sha256: str
    versions: Mapping[str, str]
    device: str


def check_model_file(path: Path) -> None:
    """Refuse what cannot be a model before a parser sees it.

    Raises:
        ModelError: Missing, a folder, empty or too large.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder; expected an .onnx file. Fix: lfd-export onnx {path} -o model.onnx")
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a model written by lfd-export")
    size = path.stat().st_size
    if not 0 < size <= MAX_MODEL_BYTES:
        raise ModelError(f"{path}: {size} bytes; a model has 1 byte to 2 GiB. Fix: export it again")


def read_spec(metadata: Mapping[str, str], path: Path) -> ModelSpec:
    """Read the ModelSpec out of an ONNX file's metadata.

    Raises:
        ModelError: There is none, or it is not valid.
    """
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"{path}: has no ModelSpec (classes, colours, input size). Fix: write the file with lfd-export onnx"
        )
    return ModelSpec.from_json(metadata[METADATA_KEY], str(path))


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
