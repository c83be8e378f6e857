"""Distillation losses and the methods they make up.

A loss is one file here and one line in LOSSES: a module that declares the features it taps, is built
from the shapes that a dry run found and from its own options, and maps two networks' outputs to named
raw scalars. It knows nothing of weights or balance: those belong to the configuration
(`lfd.config.DistillConfig`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lfd.errors import UsageError, unknown
from lfd.losses.common import DistillLoss
from lfd.losses.kd import KD
from lfd.losses.lfd import LFD
from lfd.recipe import fill

LOSSES: dict[str, type[DistillLoss]] = {"kd": KD, "lfd": LFD}


@dataclass(frozen=True)
class Method:
    """A named recipe of losses.

    Attributes:
        losses: Names in LOSSES.
        weights: Part name to its weight; `task` is the supervised loss.
        balanced: The parts that are divided by their own size, see `lfd.balance`.
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


def read_options(method: Method, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the options of each loss of a method, typed and checked.

    Args:
        method: The method.
        options: Loss name to its keys and values, [loss.NAME] of a recipe.

    Raises:
        UsageError: Options for a loss that the method has not, or a key or value that the loss does not take.
    """
    for name in options:
        if name not in LOSSES:
            raise unknown("section in [loss]", name, LOSSES)
        if name not in method.losses:
            has = ", ".join(method.losses) or "none"
            raise UsageError(f"[loss.{name}] has no effect: the method's losses are {has}. Fix: leave it away")
    return {name: fill(LOSSES[name].Options, f"loss.{name}", options.get(name, {})) for name in method.losses}
