"""What commands of lfd-export check before they work. Nothing heavy is imported for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lfd.errors import UsageError, require


def need() -> None:
    """Say which extra is missing, before an import fails somewhere inside."""
    for module in ("cv2", "torch", "torchvision", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        if find_spec(module) is None:  # importing them takes seconds, and a typing error should not
            require(module, "export")


def data_of(run: Path, data: str | None) -> str:
    """Return the data set to check on: the one given, or the one that the run was trained on."""
    from lfd.recipe import from_mapping, read_recipe  # noqa: PLC0415

    if data is not None:
        return data
    saved = (run if run.is_dir() else run.parent) / "config.toml"
    if not saved.is_file():
        raise UsageError(
            f"{saved}: no such file to tell the data set; give --data NAME:PATH, labelled pictures to score on"
        )
    trained_on = from_mapping(read_recipe(str(saved))).data
    return trained_on.val or trained_on.source
