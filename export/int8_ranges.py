"""The range of every activation, measured on real frames in bounded memory.

Not onnxruntime's calibrators: for percentile and entropy they keep every activation of every frame they are given, and
through `quantize_static` their entropy has 128 bins for 128 levels, so that it has nothing to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from lfd.errors import DataError, ExportError, require
from lfd.preprocess import Image

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

PERCENTILE = 99.99
"""Of the magnitudes; what TensorRT's and NVIDIA's PyTorch quantisation examples take."""
BINS = 2048
LEVELS = 128
MAX_VALUES = 1 << 16
"""Values of a tensor that go into its histogram from one frame; the extremes come from all of them."""
MAX_PASS_BYTES = 512 << 20
"""Activations held at once: more tensors than fit are read in several passes over the frames."""


@dataclass(frozen=True)
class Ranges:
    """The range of each activation.

    Attributes:
        of: Tensor name to (lowest, highest), both finite; lowest <= 0 <= highest.
        frames: How many were run.
        passes: How often the network ran on each.
        held_mb: Activations held at once, MB; the memory of the network itself comes on top.
    """

    of: Mapping[str, tuple[float, float]]
    frames: int
    passes: int
    held_mb: float


class Histogram:
    """Magnitudes of one tensor: BINS bins over [0, top], where top doubles when a larger value comes."""

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros(BINS)
        self.top = 0.0
        self.low = self.high = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take the values of one frame.

        Raises:
            DataError: One is not finite.
        """
        flat = values.ravel()
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError("an activation is not finite on a calibration frame; the network diverges there")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0:
            return
        if self.top == 0:
            self.top = largest
        while largest > self.top:  # two bins become one, exactly
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
            self.top *= 2
        # Every so manieth value, by an odd step, so that not one column of the grid alone is seen.
        step = max(1, len(flat) // MAX_VALUES) | 1
        sizes = np.abs(flat[::step]).astype(np.float64) * (BINS / self.top)  # of tiny values the factor is no float32
        self.counts += np.bincount(np.minimum(sizes, BINS - 1).astype(np.int64), minlength=BINS)

    def threshold(self, method: Method) -> float:
        """Return the largest magnitude that is kept; larger ones are clipped."""
        largest = max(-self.low, self.high)
        if method == "minmax" or self.top == 0:
            return largest
        chosen = self._percentile() if method == "percentile" else self._entropy()
        return min(largest, chosen * self.top / BINS)

    def _percentile(self) -> int:
        share = np.cumsum(self.counts) / self.counts.sum()
        return int(np.searchsorted(share, PERCENTILE / 100)) + 1

    def _entropy(self) -> int:
        """Return how many bins to keep so that the clipped and quantised distribution differs least from the real one.

        Migacz, "8-bit inference with TensorRT", GTC 2017. Zero is left out: after a ReLU it is half of all values, and
        it is exact at every scale.
        """
        counts = self.counts.copy()
        counts[0] = 0
        last = int(np.max(np.nonzero(counts), initial=LEVELS)) + 1
        best, kept = math.inf, last
        for size in range(LEVELS, last + 1, max(1, (last - LEVELS) // 128)):
            reference = counts[:size].copy()
            reference[-1] += counts[size:].sum()
            # Each of LEVELS levels stands for size / LEVELS bins; what it holds spreads over those that are not empty.
            level = np.arange(size) * LEVELS // size
            filled = counts[:size] > 0
            held = np.bincount(level, counts[:size], LEVELS)
            width = np.bincount(level, filled, LEVELS)
            spread = np.where(filled, (held / np.maximum(width, 1))[level], 0.0)
            divergence = _divergence(reference, spread)
            if divergence < best:
                best, kept = divergence, size
        return kept


def _divergence(reference: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Return two histograms' Kullback-Leibler divergence; a bin that only the first has counts as 1e-4 of a value."""
    there = reference > 0
    if not there.any() or not found.any():
        return math.inf
    p = reference[there] / reference.sum()
    q = np.maximum(found[there], 1e-4) / found.sum()
    return float((p * np.log(p / q)).sum())


class Repeatable(Protocol):
    """Frames that can be gone through more than once."""

    def __iter__(self) -> Iterator[Image]: ...

    def __len__(self) -> int: ...


def measure(
    model: ModelProto,
    tensors: Sequence[str],
    frames: Repeatable,
    method: Method,
    progress: Callable[[int, int], None] | None = None,
    max_bytes: int = MAX_PASS_BYTES,
) -> Ranges:
    """Run frames through a network and measure the ranges of its activations.

    Args:
        model: With shapes inferred; its input is one frame, (1, H, W, 3) uint8.
        tensors: Names of float activations.
        frames: (H, W, 3) BGR uint8, at the model's size.
        method: `minmax`; `percentile`; `entropy`.
        progress: Called after each run of the network with how many are done, and of how many.
        max_bytes: Of activations at once.

    Raises:
        DataError: There are no frames, or an activation is not finite.
        ExportError: The network cannot be run with its activations as outputs.
    """
    if len(frames) == 0:
        raise DataError("no calibration frames; expected at least one")
    infos = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    passes = _passes(tensors, infos, max_bytes)
    seen = {name: Histogram() for name in tensors}
    name_in = model.graph.input[0].name
    repeats = max(1, model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)  # an open batch says 0
    done = 0
    for names in passes:
        # A session for each pass: one with all outputs holds them all, also those that a run does not ask for.
        session = _opened(model, names)
        for frame in frames:
            for name, values in zip(
                names, session.run(names, {name_in: np.repeat(frame[None], repeats, 0)}), strict=True
            ):
                seen[name].add(values)
            done += 1
            if progress is not None:
                progress(done, len(passes) * len(frames))
    found = {}
    for name, histogram in seen.items():
        kept = histogram.threshold(method)
        found[name] = (max(histogram.low, -kept), min(histogram.high, kept))
    held = max((sum(_bytes(infos[name]) for name in names) for names in passes), default=0)
    return Ranges(found, len(frames), len(passes), held / 1e6)


def _opened(model: ModelProto, names: Sequence[str]) -> Any:
    """Return a session that gives these activations, and runs what they depend on only."""
    ort: Any = require("onnxruntime", "export")
    opened = ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it keeps the most that any run has needed
    try:
        return ort.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind maps no common base
        raise ExportError(f"the graph cannot be run for calibration ({' '.join(str(error).split())[:200]})") from error


def _bytes(info: ValueInfoProto) -> int:
    """Return a float tensor's size at batch 1; an open batch has no number."""
    sides: list[int] = [max(1, d.dim_value) for d in info.type.tensor_type.shape.dim]
    return 4 * math.prod(sides)


def _passes(tensors: Sequence[str], infos: Mapping[str, ValueInfoProto], max_bytes: int) -> list[list[str]]:
    """Share tensors out so that no pass holds more than so many bytes; one that is larger goes alone."""
    passes: list[list[str]] = []
    room = 0
    for name in tensors:
        size = _bytes(infos[name])
        if not passes or size > room:
            passes.append([])
            room = max_bytes
        passes[-1].append(name)
        room -= size
    return passes
