"""IFVD against the CIRKD repository's value and its equations written out in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lfd.losses.common import IGNORE
from lfd.losses.ifvd import IFVD, IFVDOptions
from lfd.taps import Outputs
from tests.lfd.losses.cases import Array, Case, cases, evaluate, golden, make

CASES: list[dict[str, Any]] = [{}, {"tap": "stage2"}, {"void": True}]


def variation(feature: Array, classes: NDArray[np.int64]) -> Array:
    """M of one picture, (hw,), 0 where a cell has no class."""
    found = np.zeros(len(classes))
    for i, k in enumerate(classes):
        if k < IGNORE:
            centre = feature[:, classes == k].mean(1)
            found[i] = feature[:, i] @ centre / np.sqrt((feature[:, i] ** 2).sum() * (centre**2).sum())
    return found


def reference(case: Case, tap: str, void: bool) -> float:
    student, teacher, y = case.arrays(tap)
    squares = np.stack([(variation(s, k) - variation(t, k)) ** 2 for s, t, k in zip(student, teacher, y, strict=True)])
    squares = squares.ravel() if void else squares[y < IGNORE]
    return float(squares.mean()) if len(squares) else 0.0


def value(case: Case, **options: Any) -> float:
    return evaluate(IFVD(*case.shapes, case.classes, IFVDOptions(**options)), case)["ifvd"]


@pytest.mark.shared
def test_it_is_the_cirkd_repositorys(real: Path) -> None:
    """Which takes the label at a cell's upper left corner; the target has 8 pixels a cell."""
    case, values = golden(real)
    corners = Case(case.student, case.teacher, case.target[:, ::8, ::8])
    assert value(corners, void=True) == pytest.approx(values["loss_ifvd"], rel=1e-4)


@given(cases(), st.sampled_from(CASES))
@settings(max_examples=60, deadline=None)
def test_it_is_the_equation(case: Case, options: dict[str, Any]) -> None:
    o = IFVDOptions(**options)
    # A feature of one channel is a sign: rounding turns that of a prototype near 0 around.
    assert value(case, **options) == pytest.approx(reference(case, o.tap, o.void), rel=1e-3, abs=1e-5)


def test_two_cells_of_a_class_in_closed_form() -> None:
    """Right angles lie 45 degrees from their middle, equal features 0 degrees."""
    case = make(0, batch=1, channels=(2, 2), grid=(1, 2), teacher_grid=(1, 2), void=0)
    case.target.fill_(1)
    case.student.taps["deep"].copy_(torch.tensor([[2.0, 0], [0, 2]]).view(1, 2, 1, 2))
    case.teacher.taps["deep"].fill_(5.0)
    assert value(case) == pytest.approx((0.5**0.5 - 1) ** 2, rel=1e-5)


def picture(outputs: Outputs, index: int) -> Outputs:
    return Outputs(outputs.logits[[index]], {name: x[[index]] for name, x in outputs.taps.items()}, None)


def test_prototypes_are_of_one_picture() -> None:
    case = make(5, batch=2)
    alone = [Case(picture(case.student, b), picture(case.teacher, b), case.target[[b]]) for b in range(2)]
    assert value(case, void=True) == pytest.approx(np.mean([value(one, void=True) for one in alone]), rel=1e-5)
