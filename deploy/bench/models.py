"""What may be benchmarked: model files, and checkpoints that another program measures; and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.artifact import check_model_file

CHECKPOINTS = (".safetensors", ".pth", ".pt")
RUN_FILE = "model.safetensors"
"""The weights in a run directory of lfd-train."""


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path is a run of lfd-train or a file of weights, which needs torch."""
    return (path / RUN_FILE).is_file() if path.is_dir() else path.suffix in CHECKPOINTS


def model_file(path: Path) -> Path:
    """Return the file that holds a model's weights, which is what its size and hash are of.

    Raises:
        ModelError: Missing, a folder that is no run, empty or too large.
    """
    file = path / RUN_FILE if path.is_dir() and is_checkpoint(path) else path
    check_model_file(file)
    return file


def display_names(paths: Sequence[Path]) -> list[str]:
    """Return file names, with the folder's where that tells two apart, or else a number."""
    names = [path.name for path in paths]
    full = [f"{path.resolve().parent.name}/{path.name}" for path in paths]
    names = [f if names.count(n) > 1 and full.count(f) == 1 else n for n, f in zip(names, full, strict=True)]
    return [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]
