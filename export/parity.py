"""Holding two forms of a model against each other on real pictures."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from deploy.bench.pictures import hash_pixels, spread
from export.runnable import Runnable
from lfd.data import Dataset
from lfd.data.base import Sample
from lfd.errors import DataError, ModelError
from lfd.evaluate import check_labels
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image, fit_frame, restore_map
from lfd.spec import Labels

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
            {"name": name, "a": number(a), "b": number(b), "difference": number(b - a)}
            for name, (a, b) in zip(labels.names, self.iou, strict=True)
        ]
        return {
            "same": bool(self),
            "pictures": self.pictures,
            "agreement": self.agreement,
            "required": self.required,
            "miou": {"a": number(self.miou[0]), "b": number(self.miou[1]), "difference": number(self.miou_delta)},
            "classes": classes,
            "worst": [{"name": frame.name, "agreement": frame.agreement} for frame in self.frames[:worst]],
        }


def number(value: float) -> float | None:
    """Return what JSON has for it: None for NaN."""
    return None if math.isnan(value) else value


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
    chosen = spread(len(dataset), limit)
    frames, same, total = list[Frame](), 0, 0
    for index in chosen:
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
        pictures=len(chosen),
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


@dataclass(frozen=True)
class Remembered(Runnable):
    """A model that has seen all the pictures it is going to be asked for, and needs no runtime any more.

    Attributes:
        pictures: How many.
        sha256: Of all of them as fitted, in order.
        iou: Of each class, NaN for one that neither labels nor predictions have.
        miou: In [0, 1]; NaN without a labelled pixel.
    """

    pictures: int = 0
    sha256: str = ""
    iou: tuple[float, ...] = ()
    miou: float = math.nan


def remember(model: Runnable, dataset: Dataset, limit: int | None = None) -> Remembered:
    """Run a model over a data set once, for any number of comparisons with it.

    Its class maps are kept as PNG, which makes them fifty times smaller.

    Args:
        model: The reference of those comparisons.
        dataset: As they will be made on, and `limit` likewise.
        limit: See there.

    Returns:
        The model, which raises DataError for a frame that it has not seen: its picture was changed meanwhile.

    Raises:
        ModelError: The labels do not fit the model.
    """
    check_labels(model.spec.labels, dataset.labels, "the data set")
    known: dict[bytes, bytes] = {}
    score, digest = ConfusionMatrix(len(model.spec.labels)), hashlib.sha256()
    chosen = spread(len(dataset), limit)
    for index in chosen:
        sample = dataset[index]
        frame = fit_frame(sample.image, model.spec.preprocess)
        found = model.predict(frame)
        hash_pixels(digest, frame)
        known[hashlib.sha256(frame.data).digest()] = cv2.imencode(".png", found)[1].tobytes()
        score.update(sample.mask, restored(found, model, sample))

    def predict(frame: Image) -> Image:
        packed = known.get(hashlib.sha256(frame.data).digest())
        if packed is None:
            raise DataError("a picture has changed since it was scored. Fix: run it again, on pictures that stay")
        return np.asarray(cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)

    iou = tuple(score.iou().tolist())
    return Remembered(
        predict, model.spec, model.runtime, pictures=len(chosen), sha256=digest.hexdigest(), iou=iou, miou=score.miou()
    )
