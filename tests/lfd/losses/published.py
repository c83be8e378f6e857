"""Inputs by a closed formula, for values that the authors' own modules gave for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lfd.taps import Outputs
from tests.lfd.losses.cases import Case

GRID = (8, 12)


def filled(key: int, *shape: int) -> Tensor:
    """Return numbers in (-1, 1) that look random: 2 frac(43758.5453 sin(12.9898 a + 78.233 key)) - 1."""
    a = np.arange(int(np.prod(shape)), dtype=np.float64)
    wave = 43758.5453 * np.sin(12.9898 * a + 78.233 * key)
    return torch.from_numpy(2 * (wave - np.floor(wave)) - 1).float().view(shape)


def networks() -> Case:
    """Two pictures of five classes, each cell of its own label, none of them void."""

    def outputs(key: int, stage4: int, deep: int) -> Outputs:
        logits = 3 * filled(key, 2, 5, *GRID)
        return Outputs(
            logits, {"stage4": filled(key + 1, 2, stage4, *GRID), "deep": filled(key + 2, 2, deep, *GRID)}, None
        )

    target = (2.5 * (filled(9, 2, *GRID) + 1)).long().clamp(0, 4)
    return Case(outputs(1, 64, 48), outputs(5, 80, 96), target)
