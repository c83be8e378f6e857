"""The loop that one writes first: read, resize, run, resize back, show; one after another, in one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lfd.errors import LfdError, require
from lfd.preprocess import Image

Run = Callable[[Image], Any]
"""Takes (1, h, w, 3) BGR uint8, returns (1, h, w) uint8 classes."""


def default_run(model: Path) -> tuple[Run, tuple[int, int]]:
    """Return an ONNX Runtime session as its documentation opens one, and the (height, width) that it takes."""
    session = require("onnxruntime", "deploy").InferenceSession(str(model), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    return lambda batch: session.run(None, {taken.name: batch})[0], (taken.shape[1], taken.shape[2])


def loop(film: str, run: Run, size_hw: tuple[int, int], colors: Image, out: Path | None = None) -> int:
    """Segment every frame of a film; with `out`, blend the classes over it and write an mp4v film.

    Args:
        film: A file.
        run: The model.
        size_hw: Height and width that it takes.
        colors: Colour of each class, (256, 3) BGR uint8.
        out: File to write, .mp4.

    Returns:
        How many frames there were.

    Raises:
        LfdError: OpenCV cannot read the one or write the other.
    """
    capture = cv2.VideoCapture(film)
    size_wh = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    fps, fourcc = capture.get(cv2.CAP_PROP_FPS), cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(out), fourcc, fps, size_wh) if out else None
    if not capture.isOpened() or (writer and not writer.isOpened()):
        raise LfdError(f"{film}: OpenCV cannot read it, or cannot write {out}")
    frames = 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        small = cv2.resize(frame, (size_hw[1], size_hw[0]))
        classes = run(np.asarray(small, np.uint8)[None])[0]
        classes = cv2.resize(classes, size_wh, interpolation=cv2.INTER_NEAREST)
        if writer:
            writer.write(cv2.addWeighted(frame, 0.5, colors[classes], 0.5, 0.0))
        frames += 1
    capture.release()
    if writer:
        writer.release()
    return frames
