"""Opening what lfd-export verify compares: checkpoints on PyTorch, files on their runtimes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from export.runnable import FILES, Runnable, open_file
from lfd.checkpoint import load_model
from lfd.errors import UsageError
from lfd.normalize import Predictor
from lfd.quantize.student import find
from lfd.spec import ModelSpec


def open_runnable(path: Path, size_hw: tuple[int, int] | None = None, backend: str | None = None) -> Runnable:
    """Open an .onnx file, a TensorRT engine, a run directory or a model.safetensors.

    Args:
        path: The model.
        size_hw: Input size for a checkpoint; a file has its own.
        backend: What runs a file, a name in `deploy.session.BACKENDS`; None takes the file's own.

    Raises:
        ModelError: A file that does not fit.
        CheckpointError: A checkpoint that cannot be read.
        UsageError: There is no such backend, it does not take the file, or it is given for a checkpoint.
        MissingDependencyError: The file's runtime is not installed, or there is no GPU for it.
    """
    if path.suffix in FILES:
        return open_file(path, backend)
    if backend is not None:
        raise UsageError(f"{path} is no .onnx file or engine, and runs on PyTorch; leave the backend {backend!r} away")
    model, spec = load_model(path)
    if (int8 := find(model)) is not None:
        int8.mode = "simulate"  # as it was trained, and as its INT8 file computes
    if size_hw is not None:
        spec = replace(spec, preprocess=replace(spec.preprocess, size_hw=size_hw))
    return of_model(model, spec)


def of_model(model: nn.Module, spec: ModelSpec) -> Runnable:
    """Return a network in memory, on the CPU, as a Runnable."""
    return Runnable(Predictor(model, spec.preprocess, torch.device("cpu")), spec)
