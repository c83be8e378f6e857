"""AT against the CIRKD repository's value and its equation written out in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfd.errors import UsageError
from lfd.losses.at import AT, ATOptions
from lfd.losses.common import IGNORE
from tests.lfd.losses.cases import Array, Case, cases, evaluate, golden, make

CASES: list[dict[str, Any]] = [{}, {"taps": ("deep", "stage2")}, {"power": 1.0}, {"power": 4.0}, {"void": True}]


def attention(feature: Array, count: Array, power: float) -> Array:
    q = (np.abs(feature[:, count]) ** power).sum(0)
    return q / np.sqrt((q**2).sum())


def reference(case: Case, taps: tuple[str, ...], power: float, void: bool) -> float:
    total = 0.0
    for tap in taps:
        student, teacher, y = case.arrays(tap)
        squares: list[float] = []
        for s, t, count in zip(student, teacher, np.full(y.shape, True) if void else y != IGNORE, strict=True):
            if count.any():
                squares += list((attention(s, count, power) - attention(t, count, power)) ** 2)
        total += float(np.mean(squares)) if squares else 0.0
    return total


def value(case: Case, **options: Any) -> float:
    return evaluate(AT(*case.shapes, case.classes, ATOptions(**options)), case)["at"]


@pytest.mark.shared
def test_it_is_the_cirkd_repositorys(real: Path) -> None:
    case, values = golden(real)
    assert value(case, void=True) == pytest.approx(values["loss_at"], rel=1e-5)


@given(cases(), st.sampled_from(CASES))
@settings(max_examples=60, deadline=None)
def test_it_is_the_equation(case: Case, options: dict[str, Any]) -> None:
    o = ATOptions(**options)
    assert value(case, **options) == pytest.approx(reference(case, o.taps, o.power, o.void), rel=1e-3, abs=1e-7)


def test_two_positions_in_closed_form() -> None:
    """Attention to one place alone against attention to two alike: (1, 0) and (1, 1) / sqrt 2."""
    case = make(0, batch=1, channels=(1, 1), grid=(1, 2), teacher_grid=(1, 2), void=0)
    case.student.taps["deep"].copy_(torch.tensor([3.0, 0]).view(1, 1, 1, 2))
    case.teacher.taps["deep"].copy_(torch.tensor([-7.0, 7]).view(1, 1, 1, 2))
    assert value(case) == pytest.approx(((1 - 0.5**0.5) ** 2 + 0.5) / 2, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
@pytest.mark.parametrize("power", [2.0, 16.0])
def test_the_scale_of_features_does_not_matter(scale: float, power: float) -> None:
    """Nor does it overflow: 1e4 to the 16th is far outside float32."""
    case, larger = make(1), make(1)
    larger.student.taps["deep"].mul_(scale)
    assert value(larger, power=power) == pytest.approx(value(case, power=power), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ()}, "loss.at.taps"),
        ({"taps": ("deep", "deep")}, "loss.at.taps"),
        ({"power": 0.5}, "loss.at.power"),
        ({"power": 17.0}, "loss.at.power"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ATOptions(**options)
