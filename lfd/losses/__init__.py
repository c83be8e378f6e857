"""Distillation losses and the methods they make up.

A loss is one file here and one line in LOSSES: a module that declares the features it taps, is built
from the shapes that a dry run found, and maps two networks' outputs to named raw scalars. It knows
nothing of weights or balance: those belong to the configuration (`lfd.config.DistillConfig`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lfd.losses.common import DistillLoss
from lfd.losses.kd import KD
from lfd.losses.lfd import LFD
from lfd.taps import TapInfo

Shapes = Mapping[str, TapInfo]

LOSSES: dict[str, Callable[[Shapes, Shapes, int], DistillLoss]] = {"kd": KD, "lfd": LFD}


@dataclass(frozen=True)
class Method:
    """A named recipe of losses.

    Attributes:
        losses: Names in LOSSES.
        weights: Part name to its weight; `task` is the supervised loss.
        balanced: The parts that are divided by their own value, L / sg(L).
        about: One line for `lfd-train list methods`.
    """

    losses: tuple[str, ...]
    weights: Mapping[str, float]
    balanced: tuple[str, ...]
    about: str


METHODS: dict[str, Method] = {
    "none": Method((), {"task": 1.0}, (), "no teacher: cross entropy with the labels alone"),
    "kd": Method(("kd",), {"task": 1.0, "kd": 1.0}, (), "per-pixel KL of the class probabilities (Hinton et al. 2015)"),
    "lfd": Method(
        ("kd", "lfd"),
        {"task": 1.0, "kd": 1.0, "fea": 1.0, "aux": 0.1, "kl": 1.0},
        ("task", "kd", "fea"),
        "logit-guided feature distillation (Yu et al. 2026, as reconstructed here)",
    ),
}
