"""What `lfd-export all` starts from: a checkpoint, or an fp32 ONNX file, scored once."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from export.fp16 import load_source
from export.parity import Remembered, remember
from export.runnable import BATCH_KEY, DYNAMIC, frames_per_run, open_file
from lfd.data import Dataset
from lfd.errors import DataError, UsageError

RUN_FILE = "model"
"""Stem of the weights in a run directory, which says nothing: the folder's name does."""


@dataclasses.dataclass(frozen=True)
class Original:
    """A model to make files of.

    Attributes:
        name: Of the run or file, without its folder.
        stem: What the files' names begin with.
        batch: Frames that one run takes.
        reference: Its class maps on the labelled set.
        write: Writes it as an fp32 ONNX file.
    """

    name: str
    stem: str
    batch: int | Literal["dynamic"]
    reference: Remembered
    write: Callable[[Path], None]


def open_original(
    path: Path,
    data: Dataset,
    size_hw: tuple[int, int] | None = None,
    batch: int | Literal["dynamic"] = 1,
    pictures: int | None = None,
    threads: int = 0,
) -> Original:
    """Load a model and score it.

    Args:
        path: A run directory, a file of weights, or an fp32 .onnx of lfd-export.
        data: Labelled pictures of its classes.
        size_hw: Input size; None is the model's own.
        batch: Frames that one run is to take.
        pictures: Score on at most so many; None takes all.
        threads: Of ONNX Runtime, for one inference.

    Raises:
        UsageError: A size or a batch for an .onnx, which has its own, or a size that the network does not take.
        CheckpointError: The checkpoint cannot be read.
        ModelError: The .onnx is broken, or not fp32; or the labels do not fit.
        DataError: A picture cannot be read, or there is no labelled pixel.
    """
    if path.suffix == ".onnx":
        if size_hw is not None or batch != 1:
            raise UsageError(f"{path}: an .onnx has its size and its batch; leave --size and --batch away")
        _, spec = load_source(path)
        with open_file(path, "ort", threads) as model:
            reference = remember(model, data, pictures)
        own: Literal["dynamic"] | int = DYNAMIC
        if spec.provenance.get(BATCH_KEY) != DYNAMIC:
            own = frames_per_run(path, spec)
        stem = path.stem.removesuffix("_fp32")
        found = Original(path.name, stem, own, reference, lambda out: _copy(path, out))
    else:
        found = _of_checkpoint(path, data, size_hw, batch, pictures)
    if math.isnan(found.reference.miou):
        raise DataError("the labelled set has no labelled pixel; nothing can be scored. Fix: give another --data")
    return found


def _copy(source: Path, out: Path) -> None:
    shutil.copyfile(source, out)


def _of_checkpoint(
    path: Path, data: Dataset, size_hw: tuple[int, int] | None, batch: int | Literal["dynamic"], pictures: int | None
) -> Original:
    from export.to_onnx import to_onnx  # noqa: PLC0415 - torch, which an .onnx does without
    from export.verify import of_model  # noqa: PLC0415
    from lfd.checkpoint import load_model  # noqa: PLC0415
    from lfd.models.external_outputs import check_input_size  # noqa: PLC0415

    model, spec = load_model(path)
    size = size_hw or spec.preprocess.size_hw
    check_input_size(model, size)
    sized = dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, size_hw=size))
    whole = path.resolve()
    stem = whole.name if path.is_dir() else whole.stem
    if stem == RUN_FILE:
        stem = whole.parent.name or stem

    def write(out: Path) -> None:
        to_onnx(model, sized, out, batch=batch)

    return Original(whole.name, stem, batch, remember(of_model(model, sized), data, pictures), write)
