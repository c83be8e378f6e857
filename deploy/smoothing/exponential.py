"""Exponential smoothing over class probabilities, for models that give logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.session import class_probabilities, largest_class, row_bands
from lfd.errors import UsageError
from lfd.preprocess import Image
from lfd.spec import ModelSpec


class Exponential:
    """Shows the class whose probability has the largest moving average: m += (1 - 2^(-dt / time_s)) (p - m).

    Brown's simple exponential smoothing for results at any distance dt in time, over p = softmax(logits). 4 to 8 ms for
    11 classes at 480x360, half of it exponential functions.

    Args:
        time_s: After so many seconds a result weighs half.
        spec: The model's.

    Raises:
        UsageError: It gives class maps.
    """

    def __init__(self, time_s: float, spec: ModelSpec) -> None:
        if spec.output != "logits":
            raise UsageError(
                f"smoothing exponential: needs class probabilities, and {spec.model} gives a {spec.output}. Fix: take "
                "hysteresis, or export the model with lfd-export onnx --output logits"
            )
        self._time_s, self._at_s = time_s, 0.0
        self._mean: NDArray[np.float32] | None = None

    def smooth(self, found: NDArray[Any], at_s: float) -> Image:
        """Take in a result; see `deploy.smoothing.Smoother`."""
        weight = 1.0 if self._mean is None else 1 - 2 ** ((self._at_s - at_s) / self._time_s)
        self._at_s = at_s
        if self._mean is None:
            self._mean = np.zeros_like(found)
        for band in row_bands(found):
            now, mean = class_probabilities(found[:, band]), self._mean[:, band]
            now -= mean
            now *= weight
            mean += now
        return largest_class(self._mean)
