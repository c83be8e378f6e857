"""What commands of lfd-export check before they work. Nothing heavy is imported for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

from deploy.bench.signals import stoppable
from lfd.console import guarded
from lfd.errors import CheckpointError, UsageError, require
from lfd.files import check_free

P = ParamSpec("P")
T = TypeVar("T")


def interruptible(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap a click callback as `guarded` does, and let SIGTERM and a closed terminal end it as Ctrl-C does.

    Left alone they end the process on the spot, and what it has written aside stays beside the user's files.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with stoppable():
            return command(*args, **kwargs)

    return guarded(run)


def need() -> None:
    """Say which extra is missing, before an import fails somewhere inside."""
    for module in ("cv2", "torch", "torchvision", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        if find_spec(module) is None:  # importing them takes seconds, and a typing error should not
            require(module, "export")


def check_out(out: Path, overwrite: bool, source: Path | None = None) -> None:
    """Refuse an .onnx file to write that is called something else, is there already, or is what it is made of.

    Raises:
        UsageError: It is so.
    """
    if out.suffix != ".onnx":
        raise UsageError(f"{out}: expected a name that ends in .onnx")
    if source is not None:
        check_apart(out, source)
    check_free(out, overwrite)


def check_apart(out: Path, source: Path) -> None:
    """Refuse to write over what is read; not even --overwrite means that.

    Raises:
        UsageError: Both are one file.
    """
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} is the source itself; choose another name")


def check_drop(max_miou_drop: float) -> None:
    """Refuse what is no number of points.

    Raises:
        UsageError: It is negative, or not finite.
    """
    if not (math.isfinite(max_miou_drop) and max_miou_drop >= 0):
        raise UsageError(f"--max-miou-drop {max_miou_drop}; expected points of mIoU, a number from 0")


def data_of(run: Path, data: str | None) -> str:
    """Return the data set to check on: the one given, or the one that the run was trained on.

    Raises:
        CheckpointError: There is no such run.
        UsageError: None was given, and the run names none.
    """
    from lfd.recipe import from_mapping, read_recipe  # noqa: PLC0415

    if data is not None:
        return data
    if not run.exists():  # before its absent configuration is blamed
        raise CheckpointError(f"{run}: no such run or file; expected a run of lfd-train, or a model made of one")
    saved = (run if run.is_dir() else run.parent) / "config.toml"
    if not saved.is_file():
        raise UsageError(
            f"{saved}: no such file to tell the data set; give --data NAME:PATH, labelled pictures to score on"
        )
    trained_on = from_mapping(read_recipe(str(saved))).data
    return trained_on.val or trained_on.source
