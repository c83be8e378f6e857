"""Scoring and timing a file as deployed, for the gates."""

from __future__ import annotations

import statistics
from itertools import chain
from pathlib import Path

from deploy.bench.pictures import spread
from deploy.session import BACKENDS
from export.int8 import Target
from export.parity import Parity, Remembered, compare, remember
from export.runnable import Runnable, open_as_written, open_file
from export.speed import Timed, take_turns, timing_frames
from lfd.data import Dataset


class DeployRunner:
    """Runs files on the target's own runtime where it takes them, and else on ONNX Runtime as they are written.

    Args:
        source: The file that others are held against.
        dataset: Labelled pictures of its classes.
        target: Whose files these are.
        limit: At most so many pictures, spread evenly; None takes all.
        threads: For one inference; 0 leaves it to the runtime.
        reference: The source, when it has been scored already, on whichever runtime.

    Attributes:
        runtime: What ran the last file that was scored.
    """

    def __init__(
        self,
        source: Path,
        dataset: Dataset,
        target: Target,
        limit: int | None = None,
        threads: int = 0,
        reference: Remembered | None = None,
    ) -> None:
        self._source, self._data, self._limit, self._threads = source, dataset, limit, threads
        # TensorRT takes engines: its Q/DQ files are scored as they are written.
        self._backend: str | None = target if target in BACKENDS and target != "trt" else None
        self._reference = reference
        self._parity: Parity | None = None
        self.runtime = ""

    def _open(self, path: Path) -> Runnable:
        if self._backend is None:
            return open_as_written(path, self._threads)
        return open_file(path, self._backend, self._threads)

    def reference(self) -> Remembered:
        """Return the source, scored once.

        Raises:
            ModelError: The labels do not fit it.
        """
        if self._reference is None:
            with self._open(self._source) as model:
                self._reference = remember(model, self._data, self._limit)
        return self._reference

    def source_miou(self) -> float:
        """Return the source's mean IoU; see `reference`."""
        return self.reference().miou

    def miou(self, path: Path) -> float:
        """Score a file; see `export.parity.compare`."""
        with self._open(path) as model:
            self._parity = compare(self.reference(), model, self._data, self._limit, required=0.0)
            self.runtime = model.runtime
        return self._parity.miou[1]

    def scored(self) -> Parity:
        """Return how the last file that was scored compares with the source.

        Raises:
            ValueError: None was.
        """
        if self._parity is None:
            raise ValueError("no file was scored yet")
        return self._parity

    def latency_ms(self, path: Path) -> tuple[float, float] | None:
        """Time the source and a file in turns on the same frames; None where the target does not run here."""
        if self._backend is None:
            return None
        indices = spread(len(self._data), self._limit)
        frames = timing_frames(self._data, self.reference().spec.preprocess, indices)
        both = {file: Timed(file, self._backend) for file in (self._source, path)}
        first, second = (statistics.median(chain(*taken)) for taken in take_turns(both, frames, self._threads).values())
        return first, second
