"""Holding two forms of a model against each other on real pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from deploy.session import ENGINES, InferenceSession, as_class_map, open_session
from export.to_onnx import BATCH_KEY, DYNAMIC, MAX_BATCH
from lfd.checkpoint import load_model
from lfd.data import Dataset
from lfd.data.base import Sample
from lfd.errors import ModelError, UsageError
from lfd.evaluate import check_labels
from lfd.metrics import ConfusionMatrix
from lfd.normalize import Predictor
from lfd.preprocess import Image, fit_frame, restore_map
from lfd.spec import Labels, ModelSpec

MIN_AGREEMENT = 0.999
"""Share of pixels on which an fp32 export must give the same class as its source."""


class Frame(NamedTuple):
    """How alike both are on one picture: the share of pixels, at the model's size, and its place in the set."""

    agreement: float
    name: str
    position: int


@dataclass(frozen=True)
class Parity:
    """How alike two forms of a model are.

    Attributes:
        pictures: How many were compared.
        agreement: Share of all pixels with the same class, at the model's size.
        worst: The smallest share on any one picture, and that picture's name.
        miou: Of both, in [0, 1], on the labels; NaN without a labelled pixel.
        required: Smallest agreement that passes.
        iou: Of both for each class; NaN for a class that neither labels nor predictions have.
        frames: Every picture, the worst first.
    """

    pictures: int
    agreement: float
    worst: tuple[float, str]
    miou: tuple[float, float]
    required: float
    iou: tuple[tuple[float, float], ...] = ()
    frames: tuple[Frame, ...] = ()

    @property
    def miou_delta(self) -> float:
        """MIoU of the second less that of the first."""
        return self.miou[1] - self.miou[0]

    def __bool__(self) -> bool:
        return self.agreement >= self.required

    def __str__(self) -> str:
        a, b = self.miou
        scores = "no labels" if math.isnan(a) else f"mIoU {a:.2%} and {b:.2%}, {self.miou_delta * 100:+.3f} points"
        return (
            f"{'same' if self else 'DIFFERENT'}: {self.agreement:.4%} of pixels agree on {self.pictures} pictures "
            f"(required {self.required:.2%}; worst {self.worst[0]:.3%}, {self.worst[1]}); {scores}"
        )

    def by_class(self, labels: Labels) -> str:
        """Return a plain-text table of both IoUs, in %, and their difference in points."""
        width = max(map(len, ("class", *labels.names)))
        rows = [f"{'class':<{width}}{'A':>9}{'B':>9}{'B - A':>9}"]
        for name, (a, b) in zip(labels.names, self.iou, strict=True):
            cells = [f"{100 * a:.2f}", f"{100 * b:.2f}", f"{100 * (b - a):+.2f}"]
            rows.append(f"{name:<{width}}" + "".join(f"{'-' if 'nan' in cell else cell:>9}" for cell in cells))
        return "\n".join(rows)

    def record(self, labels: Labels, worst: int) -> dict[str, Any]:
        """Return what JSON holds of it; None for what could not be counted."""
        classes = [
            {"name": name, "a": _number(a), "b": _number(b), "difference": _number(b - a)}
            for name, (a, b) in zip(labels.names, self.iou, strict=True)
        ]
        return {
            "same": bool(self),
            "pictures": self.pictures,
            "agreement": self.agreement,
            "required": self.required,
            "miou": {"a": _number(self.miou[0]), "b": _number(self.miou[1]), "difference": _number(self.miou_delta)},
            "classes": classes,
            "worst": [{"name": frame.name, "agreement": frame.agreement} for frame in self.frames[:worst]],
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Runnable:
    """A model in any form as a function from a fitted frame to a class map, and what runs it."""

    predict: Callable[[Image], Image]
    spec: ModelSpec
    runtime: str = "PyTorch CPU, fp32"


class _Places:
    """One frame at a time through a session that takes several.

    Each comes to the next place, beside earlier ones: a graph that mixes its frames, or that is right in its first
    place only, then differs.
    """

    def __init__(self, session: InferenceSession, places: int) -> None:
        self._session, self._next = session, 0
        self._frames = np.zeros((places, *session.spec.preprocess.size_hw, 3), np.uint8)

    def __call__(self, frame: Image) -> Image:
        at, self._next = self._next, (self._next + 1) % len(self._frames)
        self._frames[at] = frame
        return as_class_map(self._session.run(self._frames)[at], self._session.spec)


def open_runnable(path: Path, size_hw: tuple[int, int] | None = None, backend: str | None = None) -> Runnable:
    """Open an .onnx file, a run directory or a model.safetensors.

    Args:
        path: The model.
        size_hw: Input size for a checkpoint; an ONNX file has its own.
        backend: What runs an ONNX file, a name in `deploy.session.BACKENDS`; None takes the file's own.

    Raises:
        ModelError: An .onnx file that does not fit, or a TensorRT engine, which no backend runs yet.
        CheckpointError: A checkpoint that cannot be read.
        UsageError: There is no such backend, or it is given for a checkpoint.
    """
    if path.suffix in (".onnx", *ENGINES):
        session = open_session(path, backend)
        runtime = f"{session.build.backend}, {session.build.precision}"
        return Runnable(_Places(session, _places(session.spec, path)), session.spec, runtime)
    if backend is not None:
        raise UsageError(f"{path} is no .onnx file, and runs on PyTorch; leave the backend {backend!r} away")
    model, spec = load_model(path)
    if size_hw is not None:
        spec = replace(spec, preprocess=replace(spec.preprocess, size_hw=size_hw))
    return of_model(model, spec)


def _places(spec: ModelSpec, path: Path) -> int:
    """Return how many frames to run at once: what the file takes, and two where it takes any number."""
    batch = spec.provenance.get(BATCH_KEY, 1)
    if batch == DYNAMIC:
        return 2
    if not isinstance(batch, int) or batch is True or not 1 <= batch <= MAX_BATCH:
        raise ModelError(f"{path}: its ModelSpec says a batch of {batch!r}; expected 1 to {MAX_BATCH}")
    return batch


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
    scores = ConfusionMatrix(len(a.spec.labels)), ConfusionMatrix(len(a.spec.labels))
    count = len(dataset) if limit is None else min(limit, len(dataset))
    frames, same, total = list[Frame](), 0, 0
    for index in np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist():
        sample = dataset[index]
        maps = both_maps(a, b, sample)
        equal = int((maps[0] == maps[1]).sum())
        same, total = same + equal, total + maps[0].size
        frames.append(Frame(equal / maps[0].size, sample.name, index))
        for score, found in zip(scores, maps, strict=True):
            score.update(sample.mask, restored(found, a, sample))
    frames.sort()
    first, second = (score.iou().tolist() for score in scores)
    return Parity(
        pictures=count,
        agreement=same / total,
        worst=frames[0][:2],
        miou=(scores[0].miou(), scores[1].miou()),
        required=required,
        iou=tuple(zip(first, second, strict=True)),
        frames=tuple(frames),
    )


def both_maps(a: Runnable, b: Runnable, sample: Sample) -> tuple[Image, Image]:
    """Return both class maps at the model's size; copies, since a session's result lasts until its next run."""
    frame = fit_frame(sample.image, a.spec.preprocess)
    return np.array(a.predict(frame)), np.array(b.predict(frame))


def restored(class_map: Image, of: Runnable, sample: Sample) -> Image:
    """Return a class map at the size of the picture's labels."""
    return restore_map(class_map, of.spec.preprocess, (sample.mask.shape[0], sample.mask.shape[1]))
