"""What `lfd-export all` starts from: a checkpoint, or an fp32 ONNX file, scored once."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from export.fp16 import load_source
from export.parity import Remembered, remember
from export.runnable import BATCH_KEY, DYNAMIC, Runnable, frames_per_run, open_file
from lfd.data import Dataset
from lfd.errors import DataError, UsageError
from lfd.evaluate import check_labels
from lfd.spec import ModelSpec

PLAIN = re.compile(r"[^\w.+=@-]+")
"""What is no part of the files' names: of all things that a folder may be called, some tear a table or a command."""
RUN_FILE = "model"
"""Stem of the weights in a run directory, which says nothing: the folder's name does."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model to make files of, not scored yet.

    Attributes:
        name: Of the run or file, without its folder.
        stem: What the files' names begin with.
        batch: Frames that one run takes.
        spec: The model's, at the input size that was asked for.
        open: Returns what runs it.
        write: Writes it as an fp32 ONNX file.
    """

    name: str
    stem: str
    batch: int | Literal["dynamic"]
    spec: ModelSpec
    open: Callable[[], Runnable]
    write: Callable[[Path], None]

    def scored(self, data: Dataset, pictures: int | None = None) -> Original:
        """Score it.

        Args:
            data: Labelled pictures of its classes.
            pictures: Score on at most so many; None takes all.

        Raises:
            ModelError: The labels do not fit.
            DataError: A picture cannot be read, or there is no labelled pixel.
        """
        with self.open() as model:
            reference = remember(model, data, pictures)
        if math.isnan(reference.miou):
            raise DataError("the labelled set has no labelled pixel; nothing can be scored. Fix: give another --data")
        return Original(self.name, self.stem, self.batch, self.spec, self.open, self.write, reference)


@dataclasses.dataclass(frozen=True)
class Original(Loaded):
    """A model to make files of.

    Attributes:
        reference: Its class maps on the labelled set.
    """

    reference: Remembered


def load_original(
    path: Path,
    data: Dataset,
    size_hw: tuple[int, int] | None = None,
    batch: int | Literal["dynamic"] = 1,
    threads: int = 0,
) -> Loaded:
    """Load a model, and see that labels fit it: all that is quickly said of it.

    Args:
        path: A run directory, a file of weights, or an fp32 .onnx of lfd-export.
        data: Labelled pictures of its classes.
        size_hw: Input size; None is the model's own.
        batch: Frames that one run is to take.
        threads: Of ONNX Runtime, for one inference.

    Raises:
        UsageError: A size or a batch for an .onnx, which has its own, or a size that the network does not take.
        CheckpointError: The checkpoint cannot be read.
        ModelError: The .onnx is broken, or not fp32; or the labels do not fit.
    """
    if path.suffix == ".onnx":
        if size_hw is not None or batch != 1:
            raise UsageError(f"{path}: an .onnx has its size and its batch; leave --size and --batch away")
        found = _of_file(path, threads)
    else:
        found = _of_checkpoint(path, size_hw, batch)
    check_labels(found.spec.labels, data.labels, "the data set")
    return found


def plain(name: str) -> str:
    """Return a name of a file or folder without what tears a table or reads as an option."""
    return PLAIN.sub("_", name).lstrip("-") or RUN_FILE


def _of_file(path: Path, threads: int) -> Loaded:
    _, spec = load_source(path)
    own: Literal["dynamic"] | int = DYNAMIC
    if spec.provenance.get(BATCH_KEY) != DYNAMIC:
        own = frames_per_run(path, spec)

    def write(out: Path) -> None:
        shutil.copyfile(path, out)

    stem = plain(path.stem.removesuffix("_fp32"))
    return Loaded(plain(path.name), stem, own, spec, lambda: open_file(path, "ort", threads), write)


def _of_checkpoint(path: Path, size_hw: tuple[int, int] | None, batch: int | Literal["dynamic"]) -> Loaded:
    from export.to_onnx import to_onnx  # noqa: PLC0415 - torch, which an .onnx does without
    from export.verify import of_model  # noqa: PLC0415
    from lfd.checkpoint import load_model  # noqa: PLC0415
    from lfd.models.external_outputs import check_input_size  # noqa: PLC0415

    model, spec = load_model(path)
    size = size_hw or spec.preprocess.size_hw
    check_input_size(model, size)
    sized = dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, size_hw=size))
    whole = Path(os.path.normpath(path.absolute()))  # as it was typed: a link's own name is the one its owner knows
    stem = whole.name if path.is_dir() else whole.stem
    if stem == RUN_FILE and whole.parent.name:
        whole = whole.parent
        stem = whole.name

    def write(out: Path) -> None:
        to_onnx(model, sized, out, batch=batch)

    return Loaded(plain(whole.name), plain(stem), batch, sized, lambda: of_model(model, sized), write)
