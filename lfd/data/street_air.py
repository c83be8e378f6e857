"""The air and the light of the built-in scene, as they change a thing's colour on its way to the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Distance = TypeVar("Distance", float, NDArray[np.floating[Any]])


@dataclass(frozen=True)
class Air:
    """What lies between a thing and the camera, and what the thing is lit by.

    Attributes:
        haze: Colour of the haze, BGR.
        density: Extinction, 1/m.
        sun: Ground shadow of a thing one metre high, (lat, s) in m; None under clouds and at night.
        shade: Brightness of shadows against lit ground, 0 to 1.
        bare: Ground nearer than this is seen as if there were no air, m.
        reach: Where headlamps give half of their light, m; infinite by day.
        town: Share of the light that is everywhere at night.
    """

    haze: tuple[float, float, float]
    density: float
    sun: tuple[float, float] | None
    shade: float
    bare: float = 18.0
    reach: float = math.inf
    town: float = 0.0

    @property
    def dark(self) -> bool:
        """Whether there is no light but that of lamps."""
        return math.isfinite(self.reach)

    def lit(self, z: Distance) -> Distance:
        """Return how well things at z metres are lit, 0 to 1: under headlamps about as the inverse square."""
        return self.town + (1.0 - self.town) / (1.0 + (z / self.reach) ** 2)
