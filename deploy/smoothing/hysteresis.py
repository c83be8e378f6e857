"""Hysteresis over class maps: a pixel gives its class up when the model has not given it for a while."""

from __future__ import annotations

from collections import deque
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deploy.session import as_class_map
from lfd.preprocess import Image
from lfd.spec import ModelSpec

MOST = 255
"""Steps over which a pixel is held, at most: its count is a byte."""
SLACK_S = 1e-6
"""By which times may differ that are meant to be equal."""


class Hysteresis:
    """Shows of each pixel the class it showed before, unless the model has not given that for `time_s`.

    So no pixel shows a class that the model has not given it within `time_s`, however it wavers between others. (To
    wait until one other class has held for `time_s` leaves a pixel that wavers between two others with a third for
    ever, and on the built-in scene costs some 0.2 points of mIoU more for the same flicker.)

    The state is a class and a byte a pixel: how many steps ago the shown class was last given. A step is a result, or
    several where they are closer than `time_s` / MOST; then `time_s` is met to 1 %. Which number of steps makes it is
    found once a result, from their times. 0.1 ms for 480x360.

    Args:
        time_s: Seconds.
        spec: The model's.
    """

    def __init__(self, time_s: float, spec: ModelSpec) -> None:
        self._time_s, self._spec = time_s, spec
        self._times: deque[float] = deque(maxlen=MOST + 1)
        self._shown: Image | None = None
        self._absent: Image | None = None

    def smooth(self, found: NDArray[Any], at_s: float) -> Image:
        """Take in a result; see `deploy.smoothing.Smoother`."""
        classes = as_class_map(found, self._spec)
        step = not self._times or at_s - self._times[-1] >= self._time_s / MOST - SLACK_S
        if step:
            self._times.append(at_s)
        if self._shown is None or self._absent is None:
            self._shown, self._absent = classes.copy(), np.zeros_like(classes)
            return np.array(classes)
        other = cv2.compare(classes, self._shown, cv2.CMP_NE)
        if step:  # OpenCV's sums of bytes stop at 255
            cv2.add(self._absent, 1, dst=self._absent)  # type: ignore[call-overload]
        cv2.bitwise_and(self._absent, other, dst=self._absent)
        if (steps := self._steps()) is not None:
            due = cv2.compare(self._absent, steps, cv2.CMP_GE)  # type: ignore[call-overload]
            cv2.copyTo(classes, due, self._shown)
            cv2.bitwise_and(self._absent, cv2.bitwise_not(due), dst=self._absent)
        return np.array(self._shown)

    def _steps(self) -> int | None:
        """Return how many steps ago `time_s` have passed; None when the first is younger."""
        now = self._times[-1]
        for ago in range(1, len(self._times)):
            if now - self._times[-1 - ago] >= self._time_s - SLACK_S:
                return ago
        return MOST if len(self._times) > MOST else None
