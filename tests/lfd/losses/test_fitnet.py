"""FitNet against its equation written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfd.losses.common import IGNORE
from lfd.losses.fitnet import FitNet, FitNetOptions
from tests.lfd.losses.cases import Case, cases, evaluate, make

CASES: list[dict[str, Any]] = [{}, {"tap": "stage2"}, {"void": True}]


def build(case: Case, options: dict[str, Any]) -> FitNet:
    torch.manual_seed(0)
    return FitNet(*case.shapes, case.classes, FitNetOptions(**options))


def value(loss: FitNet, case: Case) -> float:
    return evaluate(loss, case)["fitnet"]


@given(cases(), st.sampled_from(CASES))
@settings(max_examples=60, deadline=None)
def test_it_is_the_equation(case: Case, options: dict[str, Any]) -> None:
    loss = build(case, options)
    s, t, y = case.arrays(loss.options.tap)
    r = loss.regressor.weight.detach().double().numpy()[:, :, 0, 0]
    errors = [
        np.mean((r @ s[b, :, i] - t[b, :, i]) ** 2)
        for b, i in np.ndindex(y.shape)
        if loss.options.void or y[b, i] != IGNORE
    ]
    assert value(loss, case) == pytest.approx(np.mean(errors) if errors else 0.0, rel=1e-3, abs=1e-6)


def test_a_regressor_that_finds_the_hint_leaves_nothing() -> None:
    case = make(0, channels=(4, 4))
    case.teacher.taps["deep"].copy_(3 * case.student.taps["deep"])
    loss = build(case, {})
    with torch.no_grad():
        loss.regressor.weight.copy_(3 * torch.eye(4).view(4, 4, 1, 1))
    assert value(loss, case) == 0
