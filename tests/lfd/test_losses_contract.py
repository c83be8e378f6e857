"""What every distillation loss promises, whatever its formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lfd.losses import LOSSES
from lfd.losses.common import IGNORE, UNKNOWN, DistillLoss
from lfd.taps import Outputs, TapInfo

K = 5
TAPS = ("deep", "stage1", "stage2", "stage3", "stage4")

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "kd": [{"temperature": 4.0}, {"void": True}],
    "skd": [{"holistic": "hinge"}, {"holistic": "wgan-gp"}, {"patch": (1, 2)}],
    "ifvd": [{"void": True}],
    "cwd": [{"on": "feature"}, {"on": "logits", "temperature": 1.0}],
    "at": [{"taps": ("stage2", "stage4"), "power": 1.0}],
    "dist": [{"temperature": 4.0}],
    "dsd": [{"void": True}],
    "cirkd": [
        {"kind": "batch", "cells": 20},
        {"kind": "memory", "queue_dtype": "float16", "pixel_queue": 64, "region_queue": 16},
        {"void": True, "pixel_queue": 64, "region_queue": 16},
    ],
    "mgd": [{"void": True}, {"mask_ratio": 0.0}],
    "attnfd": [{"teacher": "plain", "norm": "picture"}, {"void": True}],
    "afdcd": [
        {"generator": "enhanced", "contrast": "all", "pool": 1},
        {"contrast": "spatial"},
        {"contrast": "channel", "groups": 3},
        {"void": True},
    ],
    "lfd": [{"apply_to": "both"}, {"shared_head": "teacher", "aux_bn": "joint", "kl_start": 0.0}],
}
"""Beside the defaults: options that make a loss another one."""

DEFAULTS: dict[str, dict[str, Any]] = {"cirkd": {"pixel_queue": 64, "region_queue": 16}}
"""In place of none at all: at its own size a queue takes longer to fill than all else together."""

CASES = [(name, options) for name in LOSSES for options in (DEFAULTS.get(name, {}), *VARIANTS.get(name, []))]
each_case = pytest.mark.parametrize(
    ("name", "given"), CASES, ids=[f"{n}-{','.join(f'{k}={v}' for k, v in o.items())}" for n, o in CASES]
)


def shapes(channels: int, grid: tuple[int, int], k: int = K, logits_grid: tuple[int, int] | None = None) -> Any:
    return {"logits": TapInfo(k, logits_grid or grid), **{tap: TapInfo(channels, grid) for tap in TAPS}}


def build(name: str, given: dict[str, Any], student: Any, teacher: Any, k: int = K) -> DistillLoss:
    torch.manual_seed(0)
    options = LOSSES[name].Options(**given)
    keep = {"logits", *LOSSES[name].needs(options)}
    ours, theirs = ({tap: info for tap, info in found.items() if tap in keep} for found in (student, teacher))
    return LOSSES[name](ours, theirs, k, options).train()


def maps(found: Any, loss: DistillLoss, seed: int, batch: int = 2, scale: float = 1.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    keep = ("logits", *type(loss).needs(loss.options))
    made = {
        tap: (scale * torch.randn(batch, found[tap].channels, *found[tap].grid_hw, generator=generator))
        for tap in dict.fromkeys(keep)
    }
    leaves = {tap: value.requires_grad_() for tap, value in made.items()}
    return Outputs(leaves.pop("logits"), leaves, None)


def targets(kind: str, hw: tuple[int, int], batch: int = 2, k: int = K) -> Tensor:
    if kind == "void":
        return torch.full((batch, *hw), IGNORE)
    if kind == "unlabelled":
        return torch.full((batch, *hw), UNKNOWN)
    if kind == "one class":
        return torch.full((batch, *hw), k - 1)
    target = torch.randint(0, k, (batch, *hw), generator=torch.Generator().manual_seed(3))
    target[:, : hw[0] // 3] = IGNORE
    if kind == "mixed":
        target[0, -2:] = UNKNOWN
    return target


def run(loss: DistillLoss, s: Outputs, t: Outputs, target: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(5)  # masks that are drawn are the same ones
    return loss(s, t, target, 1.0)


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack([part.float() for part in parts.values()]).sum()


@each_case
@pytest.mark.parametrize("kind", ["void", "unlabelled", "one class", "mixed"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_values_and_gradients_are_finite_and_reach_whom_they_should(
    name: str, given: dict[str, Any], kind: str, scale: float
) -> None:
    student, teacher = shapes(6, (8, 9)), shapes(7, (8, 9))
    loss = build(name, given, student, teacher)
    s, t = maps(student, loss, 1, scale=scale), maps(teacher, loss, 2, scale=scale)
    parts = run(loss, s, t, targets(kind, (32, 36)))
    assert set(parts) <= set(LOSSES[name].active(loss.options))
    assert all(part.shape == () and torch.isfinite(part) for part in parts.values()), parts
    total(parts).backward()
    assert all(x.grad is None or not x.grad.any() for x in (t.logits, *t.taps.values())), "the teacher is silent"
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in loss.parameters()), "as processes need it"
    grads = [x.grad for x in (s.logits, *s.taps.values()) if x.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)
    if kind == "mixed" and scale == 1:
        assert any(g.any() for g in grads), "the student is trained"
        silent = [key for key, p in loss.named_parameters() if p.grad is None or not p.grad.any()]
        assert all("critic" in key for key in silent), "its own parameters are trained, but a critic's attention at 0"


@each_case
@pytest.mark.parametrize(
    ("channels", "grid", "teacher_grid", "logits_grid"),
    [
        (128, (8, 8), (9, 9), (8, 8)),
        (128, (9, 9), (8, 8), (9, 9)),
        (128, (3, 5), (9, 9), (12, 20)),
        (128, (1, 1), (2, 3), (1, 1)),
        (256, (9, 9), (9, 9), (9, 9)),
        (512, (8, 8), (8, 8), (8, 8)),
    ],
)
def test_any_channels_and_grids(
    name: str,
    given: dict[str, Any],
    channels: int,
    grid: tuple[int, int],
    teacher_grid: tuple[int, int],
    logits_grid: tuple[int, int],
) -> None:
    """Of pictures of 64 and 65 pixels at stride 8, of other strides, logits on another grid, and one cell."""
    student, teacher = shapes(64, grid, logits_grid=logits_grid), shapes(channels, teacher_grid)
    loss = build(name, given, student, teacher)
    parts = run(loss, maps(student, loss, 1), maps(teacher, loss, 2), targets("mixed", (65, 65)))
    total(parts).backward()
    assert all(torch.isfinite(part) for part in parts.values())


@each_case
def test_one_picture_and_one_class(name: str, given: dict[str, Any]) -> None:
    student, teacher = shapes(6, (4, 5), 1), shapes(7, (4, 5), 1)
    loss = build(name, given, student, teacher, 1)
    parts = run(loss, maps(student, loss, 1, 1), maps(teacher, loss, 2, 1), targets("one class", (16, 20), 1, 1))
    total(parts).backward()
    assert all(torch.isfinite(part) for part in parts.values())


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_give_a_float32_loss(name: str, given: dict[str, Any], dtype: torch.dtype) -> None:
    student, teacher = shapes(6, (8, 9)), shapes(7, (8, 9))
    loss = build(name, given, student, teacher)
    s, t = maps(student, loss, 1), maps(teacher, loss, 2)
    half = Outputs(s.logits.to(dtype), {tap: x.to(dtype) for tap, x in s.taps.items()}, None)
    with torch.autocast("cpu", torch.bfloat16):
        parts = run(loss, half, t, targets("mixed", (32, 36)))
    assert all(part.dtype == torch.float32 and torch.isfinite(part) for part in parts.values())


@each_case
def test_void_pixels_change_nothing(name: str, given: dict[str, Any]) -> None:
    """Neither value nor gradient, two cells away: what passes through two 3x3 filters looks that far.

    A batch norm averages over void cells too, so it runs on kept statistics here.
    """
    if given.get("void"):
        pytest.skip("counts them on purpose")
    student, teacher = shapes(6, (14, 9)), shapes(7, (14, 9))
    target = targets("labelled", (14, 9))
    target[:, :8] = IGNORE  # rows 0 to 7 of 14
    found = []
    for spoil in (0.0, 50.0):
        loss = build(name, given, student, teacher)
        for module in loss.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        s, t = maps(student, loss, 1), maps(teacher, loss, 2)
        with torch.no_grad():
            for x in (s.logits, *s.taps.values(), t.logits, *t.taps.values()):
                x[:, 0, :6] += spoil
        parts = run(loss, s, t, target)
        total(parts).backward()
        found.append(parts)
        for x in (s.logits, *s.taps.values()):
            assert x.grad is None or not x.grad[:, :, :6].any(), "void cells get no gradient"
    for part, value in found[0].items():
        torch.testing.assert_close(value, found[1][part], rtol=1e-5, atol=1e-7, msg=part)


@each_case
def test_descending_on_a_part_brings_it_down(name: str, given: dict[str, Any]) -> None:
    """The student's maps themselves are trained, with the loss's own parameters."""
    student, teacher = shapes(6, (8, 9)), shapes(7, (8, 9))
    for part in LOSSES[name].active(LOSSES[name].Options(**given)):
        loss = build(name, given, student, teacher)
        s, t, target = maps(student, loss, 1), maps(teacher, loss, 2), targets("labelled", (32, 36))
        optimizer = torch.optim.Adam([s.logits, *s.taps.values(), *loss.parameters()], lr=0.03)
        values = []
        for _ in range(15):
            term = run(loss, s, t, target)[part]
            values.append(float(term.detach()))
            optimizer.zero_grad()
            (term / (abs(values[0]) + 1e-12)).backward()
            optimizer.step()
        assert values[-1] < values[0], (part, values)


@each_case
def test_its_state_is_all_there_is_to_go_on_from(name: str, given: dict[str, Any]) -> None:
    student, teacher = shapes(6, (8, 9)), shapes(7, (8, 9))
    one = build(name, given, student, teacher)
    s, t, target = maps(student, one, 1), maps(teacher, one, 2), targets("labelled", (32, 36))
    run(one, s, t, target)
    other = build(name, given, student, teacher)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    ours, theirs = run(one, s, t, target), run(other, s, t, target)
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[part]) for part, value in ours.items())
