"""Scoring and timing a file as deployed, for the gates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deploy.pictures import spread
from deploy.session import BACKENDS, as_class_map, open_session
from deploy.timing import samples_needed
from export.int8 import Target
from export.int8_rank import float_options
from lfd.data import Dataset
from lfd.errors import require
from lfd.evaluate import check_labels, evaluate
from lfd.preprocess import Image, fit_frame
from lfd.spec import ModelSpec

WARM_UP = 3
TIMING_FRAMES = 8
TIMING_S = 3.0
MAX_SAMPLES = 101

Run = Callable[[Image], NDArray[Any]]


class DeployRunner:
    """Runs files on the target's own runtime where it is here, and else on ONNX Runtime as they are written.

    Args:
        spec: The model's.
        dataset: Labelled pictures of its classes.
        target: Whose files these are.
        limit: At most so many pictures, spread evenly; None takes all.
        threads: For one inference; 0 leaves it to the runtime.

    Raises:
        ModelError: The labels do not fit the model.
    """

    def __init__(
        self, spec: ModelSpec, dataset: Dataset, target: Target, limit: int | None = None, threads: int = 0
    ) -> None:
        check_labels(spec.labels, dataset.labels, "the labelled set of the gate")
        self._spec, self._data, self._threads = spec, dataset, threads
        self._indices = spread(len(dataset), limit)
        self._backend: str | None = target if target in BACKENDS else None

    def miou(self, path: Path) -> float:
        """Score a file; see `lfd.evaluate.evaluate`."""
        if self._backend is None:
            return self._score(_as_written(path), _frames_per_run(path))
        with open_session(path, self._backend, self._threads) as session:
            return self._score(session.run, _frames_per_run(path))

    def _score(self, run: Run, places: int) -> float:
        def predict(frame: Image) -> Image:
            return as_class_map(run(np.repeat(frame[None], places, 0))[0], self._spec)

        return evaluate(predict, self._data, self._spec.preprocess, None, self._indices).miou()

    def latency_ms(self, source: Path, int8: Path) -> tuple[float, float] | None:
        """Time both in turns on the same frames, so that both see the same state of the machine."""
        if self._backend is None:
            return None
        chosen = [self._indices[i] for i in spread(len(self._indices), TIMING_FRAMES)]
        fitted = [fit_frame(self._data[index].image, self._spec.preprocess) for index in chosen]
        frames = [np.repeat(frame[None], _frames_per_run(source), 0) for frame in fitted]
        with (
            open_session(source, self._backend, self._threads) as a,
            open_session(int8, self._backend, self._threads) as b,
        ):
            samples: tuple[list[float], list[float]] = ([], [])
            begin = time.perf_counter()
            for turn in range(WARM_UP + MAX_SAMPLES):
                if min(map(len, samples)) >= samples_needed(0.5) and time.perf_counter() - begin > TIMING_S:
                    break
                for session, taken in zip((a, b), samples, strict=True):
                    started = time.perf_counter()
                    session.run(frames[turn % len(frames)])
                    if turn >= WARM_UP:
                        taken.append((time.perf_counter() - started) * 1e3)
        return statistics.median(samples[0]), statistics.median(samples[1])


def _frames_per_run(path: Path) -> int:
    """Return the batch that an ONNX file of ours takes; one where it leaves it open."""
    shape = onnx.load(str(path)).graph.input[0].type.tensor_type.shape
    side: int = shape.dim[0].dim_value
    return max(1, side)


def _as_written(path: Path) -> Run:
    """Return a file's output as its Q/DQ pairs say, computed in float by ONNX Runtime."""
    ort: Any = require("onnxruntime", "export")
    session = ort.InferenceSession(str(path), float_options(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])
