"""Distillation methods: which losses, with which weights, and what of a configuration has no effect on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lfd.errors import UsageError, unknown
from lfd.losses import LOSSES
from lfd.recipe import fill


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
    "skd": Method(
        ("kd", "skd"),
        {"task": 1.0, "kd": 10.0, "skd_pair": 10.0, "skd_holistic": 0.1, "skd_critic": 0.004},
        (),
        "similarities between pairs of nodes, and a critic of the logits as an option (Liu et al. 2019)",
    ),
    "ifvd": Method(("ifvd",), {"task": 1.0, "ifvd": 20.0}, (), "similarity to class prototypes (Wang et al. 2020)"),
    "cwd": Method(
        ("cwd",),
        {"task": 1.0, "cwd_fea": 50.0, "cwd_logit": 3.0},
        (),
        "KL of each channel's distribution over positions (Shu et al. 2021)",
    ),
    "at": Method(("at",), {"task": 1.0, "at": 10_000.0}, (), "attention maps (Zagoruyko & Komodakis 2017)"),
    "fitnet": Method(("fitnet",), {"task": 1.0, "fitnet": 10.0}, (), "hints: regressed features (Romero et al. 2015)"),
    "dist": Method(
        ("dist",),
        {"task": 1.0, "dist_inter": 1.0, "dist_intra": 1.0},
        (),
        "correlation of class probabilities over classes and over cells (Huang et al. 2022)",
    ),
    "dsd": Method(
        ("dsd",),
        {"task": 1.0, "dsd_pixel": 1000.0, "dsd_category": 10.0},
        (),
        "residual attention between layers, and correlation of classes (Feng et al. 2021)",
    ),
    "cirkd": Method(
        ("kd", "cirkd"),
        {"task": 1.0, "kd": 1.0, "cirkd_batch": 1.0, "cirkd_pixel": 0.1, "cirkd_region": 0.1},
        (),
        "relations to pixels and regions of other pictures, of the batch and of a memory (Yang et al. 2022)",
    ),
    "mgd": Method(
        ("mgd",), {"task": 1.0, "mgd": 2e-5}, (), "the teacher's feature generated from a masked one (Yang et al. 2022)"
    ),
    "attnfd": Method(
        ("attnfd",), {"task": 1.0, "attnfd": 2.0}, (), "features refined by attention, CBAM (Mansourian et al. 2024)"
    ),
    "afdcd": Method(
        ("kd", "afdcd"),
        {"task": 1.0, "kd": 1.0, "afdcd_fd": 2e-6, "afdcd_contrast": 0.005},
        (),
        "masked generation, and contrast of cells and channel groups inside patches (Fan et al. 2023)",
    ),
}


def find_method(text: str) -> Method:
    """Return a method by name, or the sum of several: `kd+cwd`.

    Where two of them give a part different weights, that of the method named after the part counts, `kd` for kd.

    Raises:
        UsageError: An unknown name, one that is given twice, `none` in a sum, or weights that contradict each other.
    """
    names = text.split("+")
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    if len(names) == 1:
        return METHODS[text]
    if len(set(names)) < len(names) or "none" in names:
        raise UsageError(f"method {text!r}; expected different distillers joined by +, such as kd+cwd")
    weights: dict[str, float] = {}
    for name in names:
        for part, weight in METHODS[name].weights.items():
            if weights.setdefault(part, weight) != weight and part not in names:
                raise UsageError(
                    f"method {text!r}: its methods give {part} the weights {weights[part]:g} and {weight:g}. "
                    f"Fix: add +{part}, which has its own, or choose another method"
                )
    weights |= {name: METHODS[name].weights[name] for name in names if name in METHODS[name].weights}
    chosen = [METHODS[name] for name in names]
    return Method(
        tuple(dict.fromkeys(loss for method in chosen for loss in method.losses)),
        weights,
        tuple(dict.fromkeys(part for method in chosen for part in method.balanced)),
        " + ".join(method.about for method in chosen),
    )


@dataclass(frozen=True)
class Plan:
    """What a run computes.

    Attributes:
        losses: Name in LOSSES to its options, for each loss that has a part with a weight.
        weights: Part to weight, for each part that is computed, and `task`.
        balanced: The parts that are divided by their own size.
        balance: How, see `lfd.balance`.
    """

    losses: Mapping[str, Any]
    weights: Mapping[str, float]
    balanced: tuple[str, ...]
    balance: str


def plan(
    text: str,
    weights: Mapping[str, float] | None = None,
    balance: str = "",
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Work out what a configuration computes, and refuse what has no effect, before anything is loaded.

    Args:
        text: A method, or several joined by +.
        weights: Part to weight, in place of the method's own.
        balance: `detach`, `ema` or `none`; "" for `detach`.
        options: Loss name to its keys and values, [loss.NAME] of a recipe.

    Raises:
        UsageError: An unknown method, a weight, balance or option without effect, or a key or value that a loss does
            not take.
    """
    method, weights, options = find_method(text), weights or {}, options or {}
    for part in weights:
        if part not in method.weights:
            raise unknown(f"loss weight of method {text!r}", part, method.weights)
    wanted = {**method.weights, **weights}
    if not any(wanted.values()):
        raise UsageError(f"every loss weight of method {text!r} is 0: nothing would be learnt")
    if balance and not method.balanced:
        raise UsageError(
            f"distill.balance = {balance!r} has no effect: method {text!r} balances nothing. Fix: leave it away"
        )
    losses, computed = {}, {"task": wanted["task"]}
    for name, chosen in _read_options(text, method, options).items():
        active = LOSSES[name].active(chosen)
        for part in set(LOSSES[name].parts) & set(weights) - set(active):
            raise UsageError(
                f"distill.weights.{part} = {weights[part]:g} has no effect: the options of [loss.{name}] leave "
                f"{part} out. Fix: leave it away, or change them"
            )
        for part in LOSSES[name].together:
            if part in active and not wanted[part]:
                both = " and ".join(LOSSES[name].together)
                raise UsageError(
                    f"distill.weights.{part} = 0, but the options of [loss.{name}] call for {both}, of use only "
                    "together. Fix: give it a weight, or change them"
                )
        _check_served(name, options.get(name, {}), {part: wanted[part] for part in active})
        if any(wanted[part] for part in active):
            losses[name] = chosen
            computed |= {part: wanted[part] for part in active}
    balanced = tuple(part for part in method.balanced if part in computed)
    return Plan(losses, computed, balanced, balance or "detach")


def _read_options(text: str, method: Method, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the options of each loss of a method, typed and checked."""
    for name in options:
        if name not in LOSSES:
            raise unknown("section in [loss]", name, LOSSES)
        if name not in method.losses:
            has = ", ".join(method.losses) or "none"
            raise UsageError(
                f"[loss.{name}] has no effect: the losses of method {text!r} are {has}. Fix: leave it away"
            )
    return {name: fill(LOSSES[name].Options, f"loss.{name}", options.get(name, {})) for name in method.losses}


def _check_served(name: str, given: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    """Refuse an option that is only for parts of weight 0, or that other options leave out."""
    for key, value in given.items():
        parts = LOSSES[name].serves.get(key, tuple(weights))
        if any(weights.get(part) for part in parts):
            continue
        silent = [part for part in parts if part in weights]
        why = f"while the weight of {' and '.join(silent)} is 0" if silent else f"without {' and '.join(parts)}"
        raise UsageError(f"loss.{name}.{key} = {value!r} has no effect {why}. Fix: leave it away, or change that")


def check_teacher(text: str, has_teacher: bool) -> None:
    """Refuse a method without the teacher that it needs, and a teacher that it has no use for.

    Raises:
        UsageError: It is so.
    """
    needs = bool(find_method(text).losses)
    if needs and not has_teacher:
        raise UsageError(f"method {text!r} needs a teacher; give --teacher RUN")
    if has_teacher and not needs:
        raise UsageError(f"method {text!r} has no use for a teacher. Fix: leave --teacher away, or choose a method")
