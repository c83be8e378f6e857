"""The frames that int8 ranges are measured on: real, enough of them, fitted as the runtime fits them, and on record.

ModelOpt and jetson-inference calibrate on random numbers without being asked; here too few frames, the same frame again
and again, plain colours and noise are errors. Frames are read anew each time: 500 of 1024x2048 would take 3 GB.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deploy.bench.pictures import hash_pixels, spread
from deploy.frames import Frame
from deploy.sources import kind_of, open_source, redact
from deploy.sources.address import split_options
from lfd.data import DATASETS, UNLABELLED, open_dataset, parse_data
from lfd.data.frames import FrameSet
from lfd.errors import DataError, LfdError, SourceError, UsageError
from lfd.preprocess import Image, fit_frame
from lfd.spec import Labels, ModelSpec

LIMIT = 500
"""As many real pictures the field advises; TensorRT's and ModelOpt's guides say 500 for ImageNet networks."""
MINIMUM = 32
CALIBRATION_KEY = "lfd_calibration"
FLAT = 2.0
"""A frame whose levels deviate less (standard deviation, of 255) is one colour."""
NOISE = 0.5
"""Below this likeness it is noise: noise has 0 to 0.45, also when it was enlarged up to 16 times; pictures of CamVid,
of a film and of street: have 0.72 to 0.97."""
COARSEST = 12
"""Pixels of the shorter side of the smallest scale that is looked at; fewer say nothing."""


@dataclass(frozen=True)
class Frames:
    """Frames for calibration, at the model's size.

    Attributes:
        source: What they came from: `camvid`, `film`, `pictures`, ...; never a path.
        split: Of a labelled set, else None.
        count: How many.
        sha256: Of all of them as fitted, in order.
        read: Begins to read them: (h, w, 3) BGR uint8 each.
    """

    source: str
    split: str | None
    count: int
    sha256: str
    read: Callable[[], Iterator[Image]]

    def __iter__(self) -> Iterator[Image]:
        return self.read()

    def __len__(self) -> int:
        return self.count

    def some(self, count: int) -> list[Image]:
        """Return up to `count` frames, spread evenly."""
        wanted = set(spread(self.count, count))
        return [frame for index, frame in enumerate(self) if index in wanted]

    def record(self, method: str) -> str:
        """Return what an int8 file says of its calibration, as JSON."""
        values = {"source": self.source, "count": self.count, "sha256": self.sha256, "method": method}
        return json.dumps(values | ({"split": self.split} if self.split else {}))


def open_frames(text: str, spec: ModelSpec, limit: int = LIMIT, minimum: int = MINIMUM) -> Frames:
    """Choose frames, evenly spread over their source, and check them; they are decoded once for that.

    Args:
        text: A labelled set, `NAME:PATH[@SPLIT]` (the training split by default: the pictures that accuracy is
            measured on stay out of it), `frames:PATH`, a folder or glob of pictures, or a film.
        spec: The model's; its preprocessing fits the frames.
        limit: At most so many.
        minimum: Fewer are refused.

    Raises:
        UsageError: `limit` or the source does not make sense.
        DataError: It cannot be read, or its frames are too few, all alike, plain colours or noise.
    """
    if not 1 <= minimum <= limit:
        raise UsageError(f"{limit} calibration frames; expected at least {minimum}")
    try:
        known = text.partition(":")[0] in (*DATASETS, *UNLABELLED)
        source, split, read = _of_set(text, limit, spec.labels) if known else _plain(text, limit)
        check = _Check(text, minimum)

        def fitted() -> Iterator[Image]:
            for image in read():
                yield fit_frame(image, spec.preprocess)

        for frame in fitted():
            check.add(frame)
        check.finish()
    except SourceError as error:
        said = str(error).partition(", or take what is there with --max-frames")[0]  # an option of lfd-run
        raise DataError(f"calibration frames: {said}") from error
    return Frames(source, split, check.count, check.digest.hexdigest(), fitted)


def gate_data(calibration: str, data: str | None) -> str:
    """Return the labelled set that the gate scores on: the one given, or the calibration's own, its validation split.

    Raises:
        UsageError: None was given, and the calibration has no labels; or the gate would score on the pictures that
            the ranges were measured on.
    """
    labelled = calibration.partition(":")[0] in DATASETS
    if data is None and not labelled:
        raise UsageError(f"--calib {calibration} has no labels for the accuracy gate; give --data NAME:PATH")
    used = parse_data(calibration) if labelled else None
    if data is None and used is not None:
        data = f"{used.name}:{used.path}@val"
    name, path, split = parse_data(data or "")
    if name in UNLABELLED:
        raise UsageError(f"--data {data} has no labels for the accuracy gate; give a labelled set, NAME:PATH")
    same = used is not None and (name, _place(path), split or "val") == (
        used.name, _place(used.path), used.split or "train",
    )  # fmt: skip
    if same:
        raise UsageError(
            f"ranges would be measured on {name} {split or 'val'}, and so would the accuracy; expected two splits of "
            "--calib and --data, or a fair score is lost"
        )
    return f"{name}:{path}@{split or 'val'}"


def _place(path: str) -> tuple[str, str]:
    """Return what a set's path points to, and its options, however it is written."""
    folder, mark, options = path.partition("?")
    return os.path.realpath(folder), mark + options


def default_calibration(data: str) -> str:
    """Return what int8 is calibrated on when only a labelled set was named: its training pictures."""
    name, path, _ = parse_data(data)
    return f"{name}:{path}@train"


Reader = tuple[str, str | None, Callable[[], Iterator[Image]]]


def _of_set(text: str, limit: int, labels: Labels) -> Reader:
    name, _, split = parse_data(text)
    dataset = open_dataset(text, "train", labels)
    indices = spread(len(dataset), limit)
    if isinstance(dataset, FrameSet):
        return name, None, lambda: _streamed(dataset, frozenset(indices))
    return name, split or "train", lambda: (dataset[index].image for index in indices)


def _streamed(dataset: FrameSet, wanted: Collection[int]) -> Iterator[Image]:
    """Yield frames in order; asked for by their place, a film would be kept in memory as a whole."""
    for index, found in enumerate(dataset.stream()):
        if isinstance(found, DataError):
            raise found
        if index in wanted:
            yield found.image


def _plain(text: str, limit: int) -> Reader:
    kind = kind_of(text)
    live = f"calibration frames {redact(text)!r} are live and never the same twice; record a film first"
    if kind in ("camera", "csi", "rtsp"):
        raise UsageError(live)
    if split_options(kind, text)[1].loop:
        raise UsageError(f"calibration frames {redact(text)!r} have no end; leave #loop=true away")

    def all_frames() -> Iterator[Frame]:
        source = open_source(text)
        try:
            yield from (frame for frame in source if isinstance(frame, Frame))
        finally:
            source.close()

    source = open_source(text)
    try:
        info = source.info
    finally:
        source.close()
    total = info.frames
    if info.live and total is None:
        raise UsageError(live)
    wanted = frozenset(spread(sum(1 for _ in all_frames()) if total is None else total, limit))
    return kind, None, lambda: (frame.image for frame in all_frames() if frame.index in wanted)


class _Check:
    """Counts, hashes and judges frames as they pass."""

    def __init__(self, text: str, minimum: int) -> None:
        self.text, self.minimum = text, minimum
        self.count = self.flat = self.noisy = 0
        self.digest: Any = hashlib.sha256()
        self.different: set[bytes] = set()

    def add(self, frame: Image) -> None:
        """Take a fitted frame."""
        self.count += 1
        hash_pixels(self.digest, frame)
        self.different.add(hashlib.sha256(frame.data).digest())
        grey = frame.mean(2)
        if float(grey.std()) < FLAT:
            self.flat += 1
        elif likeness(frame) < NOISE:
            self.noisy += 1

    def finish(self) -> None:
        """Judge them.

        Raises:
            DataError: They cannot stand for what the model will see.
        """
        fix = "Fix: give pictures from the camera or data set that the model is for"
        if self.count < self.minimum:
            self._refuse(f"{self.count} frames; expected at least {self.minimum}. Fix: give more pictures")
        if len(self.different) < self.minimum:
            self._refuse(f"only {len(self.different)} of {self.count} frames differ; expected {self.minimum}. {fix}")
        if 2 * self.flat > self.count:
            self._refuse(f"{self.flat} of {self.count} frames are a single colour. {fix}")
        if 2 * self.noisy > self.count:
            self._refuse(f"{self.noisy} of {self.count} frames are random noise. {fix}")

    def _refuse(self, why: str) -> None:
        error: LfdError = DataError(f"calibration frames {self.text}: {why}")
        raise error


def likeness(frame: Image) -> float:
    """Return how far neighbouring pixels correlate, in [-1, 1], at the scale where they do so least.

    Pictures look alike at every scale (Ruderman and Bialek, "Statistics of natural images: scaling in the woods",
    1994); noise that was enlarged is smooth, until it is as small again as it was made.

    Args:
        frame: (h, w, 3) uint8, of more than one brightness.
    """
    found = 1.0
    while True:
        grey = frame.mean(2)
        if float(grey.std()) >= FLAT:
            found = min(found, _correlation(grey - grey.mean()))
        height, width = frame.shape[0] // 2, frame.shape[1] // 2
        if min(height, width) < COARSEST:
            return found
        frame = np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _correlation(grey: NDArray[np.float64]) -> float:
    """Return the larger of across and down, of brightness whose mean is 0."""
    across = (grey[:, 1:] * grey[:, :-1]).mean() if grey.shape[1] > 1 else 0.0
    down = (grey[1:] * grey[:-1]).mean() if grey.shape[0] > 1 else 0.0
    return float(np.maximum(across, down) / (grey * grey).mean())
