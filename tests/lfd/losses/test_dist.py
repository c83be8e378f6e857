"""DIST against numpy's own correlation coefficient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfd.errors import UsageError
from lfd.losses.common import IGNORE
from lfd.losses.dist import DIST, DISTOptions
from tests.lfd.losses.cases import Array, Case, cases, evaluate, make

CASES: list[dict[str, Any]] = [{}, {"temperature": 4.0}, {"void": True}]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    p: Array = e / e.sum(1, keepdims=True)
    return p


def correlation(a: Array, b: Array) -> float:
    if a.std() < 1e-7 or b.std() < 1e-7:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def reference(case: Case, temperature: float, void: bool) -> dict[str, float]:
    s, t, y = case.arrays("logits")
    p_s, p_t = (softmax(z / temperature).transpose(0, 2, 1) for z in (s, t))
    count = np.full(y.shape, True) if void else y != IGNORE
    p_s, p_t = p_s[count], p_t[count]  # (cells, K)
    if not count.any():
        return {"dist_inter": 0.0, "dist_intra": 0.0}
    inter = np.mean([1 - correlation(a, b) for a, b in zip(p_s, p_t, strict=True)])
    intra = np.mean([1 - correlation(a, b) for a, b in zip(p_s.T, p_t.T, strict=True)])
    return {"dist_inter": float(inter) * temperature**2, "dist_intra": float(intra) * temperature**2}


def terms(case: Case, **options: Any) -> dict[str, float]:
    return evaluate(DIST(*case.shapes, case.classes, DISTOptions(**options)), case)


@given(cases(), st.sampled_from(CASES))
@settings(max_examples=80, deadline=None)
def test_it_is_numpys_correlation(case: Case, options: dict[str, Any]) -> None:
    o = DISTOptions(**options)
    assert terms(case, **options) == pytest.approx(reference(case, o.temperature, o.void), rel=1e-2, abs=1e-3)


def test_equal_predictions_leave_nothing_and_opposite_ones_two() -> None:
    case = make(2, classes=2)
    case.teacher.logits.copy_(case.student.logits)
    assert terms(case) == pytest.approx({"dist_inter": 0, "dist_intra": 0}, abs=1e-4)  # up to the published 1e-8
    case.teacher.logits.neg_()  # of two classes, p becomes 1 - p
    assert terms(case) == pytest.approx({"dist_inter": 2, "dist_intra": 2}, abs=1e-4)


def test_only_relations_matter() -> None:
    """Probabilities that are farther apart, but in the same relation, cost nothing: what KL would punish."""
    p = torch.softmax(make(4).student.logits, 1)
    case = make(4)
    case.student.logits.copy_(p.log())
    case.teacher.logits.copy_((0.5 * p + 0.5 / case.classes).log())
    assert terms(case)["dist_inter"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("same", ["student", "teacher"])
def test_equal_logits_have_no_relation_and_no_gradient(same: str) -> None:
    case = make(6)
    getattr(case, same).logits.zero_()
    case.student.logits.requires_grad_()
    found = DIST(*case.shapes, case.classes)(case.student, case.teacher, case.target, 1.0)
    (found["dist_inter"] + found["dist_intra"]).backward()
    assert {name: float(value.detach()) for name, value in found.items()} == {"dist_inter": 1, "dist_intra": 1}
    assert case.student.logits.grad is not None and not case.student.logits.grad.any()


@pytest.mark.parametrize("temperature", [0.0, float("nan"), 1e4])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"loss\.dist\.temperature"):
        DISTOptions(temperature)
