"""Holding two forms of a model against each other on real pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploy.session import class_map, open_session
from lfd.checkpoint import load_model
from lfd.data import Dataset
from lfd.errors import ModelError
from lfd.evaluate import check_labels
from lfd.metrics import ConfusionMatrix
from lfd.normalize import Predictor
from lfd.preprocess import Image, fit_frame, restore_map
from lfd.spec import ModelSpec

MIN_AGREEMENT = 0.999
"""Share of pixels on which an fp32 export must give the same class as its source."""


@dataclass(frozen=True)
class Parity:
    """How alike two forms of a model are.

    Attributes:
        pictures: How many were compared.
        agreement: Share of all pixels with the same class, at the model's size.
        worst: The smallest share on any one picture, and that picture's name.
        miou: Of both, in [0, 1], on the labels; NaN without a labelled pixel.
        required: Smallest agreement that passes.
    """

    pictures: int
    agreement: float
    worst: tuple[float, str]
    miou: tuple[float, float]
    required: float

    @property
    def miou_delta(self) -> float:
        """MIoU of the second less that of the first."""
        return self.miou[1] - self.miou[0]

    def __bool__(self) -> bool:
        return self.agreement >= self.required

    def __str__(self) -> str:
        a, b = self.miou
        return (
            f"{'same' if self else 'DIFFERENT'}: {self.agreement:.4%} of pixels agree on {self.pictures} pictures "
            f"(required {self.required:.2%}; worst {self.worst[0]:.3%}, {self.worst[1]}); "
            f"mIoU {a:.2%} and {b:.2%}, {self.miou_delta * 100:+.3f} points"
        )


@dataclass(frozen=True)
class Runnable:
    """A model in any form as a function from a fitted frame to a class map."""

    predict: Callable[[Image], Image]
    spec: ModelSpec


def open_runnable(path: Path, size_hw: tuple[int, int] | None = None) -> Runnable:
    """Open an .onnx file, a run directory or a model.safetensors.

    Args:
        path: The model.
        size_hw: Input size for a checkpoint; an ONNX file has its own.

    Raises:
        ModelError: An .onnx file that does not fit.
        CheckpointError: A checkpoint that cannot be read.
    """
    if path.suffix == ".onnx":
        session = open_session(path)
        return Runnable(lambda frame: class_map(session, frame), session.spec)
    model, spec = load_model(path)
    if size_hw is not None:
        spec = replace(spec, preprocess=replace(spec.preprocess, size_hw=size_hw))
    return of_model(model, spec)


def of_model(model: nn.Module, spec: ModelSpec) -> Runnable:
    """Return a network in memory, on the CPU, as a Runnable."""
    return Runnable(Predictor(model, spec.preprocess, torch.device("cpu")), spec)


def compare(
    a: Runnable, b: Runnable, dataset: Dataset, limit: int | None = None, required: float = MIN_AGREEMENT
) -> Parity:
    """Run both over a data set.

    Args:
        a: The reference.
        b: What is held against it.
        dataset: Labelled pictures of the models' classes.
        limit: At most so many pictures, spread evenly over the set; None takes all.
        required: Smallest agreement that passes.

    Raises:
        ModelError: Their classes or input sizes differ.
    """
    check_labels(a.spec.labels, b.spec.labels, "the other model")
    check_labels(a.spec.labels, dataset.labels, "the data set")
    if a.spec.preprocess.size_hw != b.spec.preprocess.size_hw or a.spec.preprocess.resize != b.spec.preprocess.resize:
        raise ModelError(
            f"one model takes {a.spec.preprocess.size_hw} ({a.spec.preprocess.resize}), the other "
            f"{b.spec.preprocess.size_hw} ({b.spec.preprocess.resize}); pixels can only be compared at one size"
        )
    k, preprocess = len(a.spec.labels), a.spec.preprocess
    scores = ConfusionMatrix(k), ConfusionMatrix(k)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    worst, same, total = (2.0, ""), 0, 0
    for index in np.linspace(0, len(dataset) - 1, count).round().astype(int):
        sample = dataset[int(index)]
        frame = fit_frame(sample.image, preprocess)
        maps = [np.array(runnable.predict(frame)) for runnable in (a, b)]
        equal = int((maps[0] == maps[1]).sum())
        same, total = same + equal, total + maps[0].size
        worst = min(worst, (equal / maps[0].size, sample.name))
        hw = (sample.mask.shape[0], sample.mask.shape[1])
        for score, found in zip(scores, maps, strict=True):
            score.update(sample.mask, restore_map(found, preprocess, hw))
    return Parity(count, same / total, worst, (scores[0].miou(), scores[1].miou()), required)
