"""DSD against the CIRKD repository's module and its equations written out in numpy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfd.errors import UsageError
from lfd.losses.common import IGNORE
from lfd.losses.dsd import DSD, DSDOptions
from lfd.methods import METHODS
from lfd.taps import Outputs
from tests.lfd.losses.cases import Array, Case, cases, labels, make
from tests.lfd.losses.published import networks

CASES: list[dict[str, Any]] = [
    {"taps": ("stage2", "deep")},
    {"taps": ("deep",)},
    {"taps": ("deep",), "temperature": 0.5},
    {"taps": ("deep", "stage2"), "void": True},
]


def unit(x: Array, least: float = 1e-6) -> Array:
    return np.asarray(x / max(np.sqrt((x**2).sum()), least))


def pixel(case: Case, taps: tuple[str, ...], counts: Array) -> float:
    """Residual attention, over the cells that count."""
    grid = (case.student.logits.shape[2], case.student.logits.shape[3])

    def residuals(outputs: Outputs, picture: int) -> list[Array]:
        maps = []
        for layer in (*(outputs.taps[tap] for tap in taps), outputs.logits):
            energy = layer[picture : picture + 1].double().square().mean(1, keepdim=True)
            on_grid = F.interpolate(energy, grid, mode="bilinear").numpy().ravel()
            maps.append(unit(on_grid * counts[picture]))
        return [unit(m - n, 1e-4) for n, m in combinations(maps, 2)]

    squares: list[Array] = []
    for picture, count in enumerate(counts):
        for s, t in zip(residuals(case.student, picture), residuals(case.teacher, picture), strict=True):
            squares.append((s - t)[count] ** 2)
    joined = np.concatenate(squares)
    return float(joined.mean()) if len(joined) else 0.0


def category(case: Case, temperature: float, counts: Array) -> float:
    """Class maps of 2x2 means, softmax over the cells, products."""
    found = []
    height, width = case.student.logits.shape[2:]
    student, teacher, _ = case.arrays("logits")
    for s, t, count in zip(student, teacher, counts.reshape(-1, height, width), strict=True):
        products = []
        for z in (s.reshape(-1, height, width), t.reshape(-1, height, width)):
            columns = []
            for i in range(0, height, 2):
                for j in range(0, width, 2):
                    here = count[i : i + 2, j : j + 2]
                    if here.any():
                        columns.append(z[:, i : i + 2, j : j + 2][:, here].mean(1))
            if not columns:
                break
            e = np.stack(columns, 1) / temperature
            e = np.exp(e - e.max(1, keepdims=True))
            p = e / e.sum(1, keepdims=True)
            products.append(p @ p.T)
        if len(products) == 2:
            found.append(((products[0] - products[1]) ** 2).mean())
    return float(np.mean(found)) if found else 0.0


def values(case: Case, target: Tensor | None = None, **options: Any) -> dict[str, float]:
    loss = DSD(*case.shapes, case.classes, DSDOptions(**options))
    terms = loss(case.student, case.teacher, case.target if target is None else target, 1.0)
    return {name: float(value) for name, value in terms.items()}


def test_it_is_the_cirkd_repositorys() -> None:
    """Values of its losses/dsd.py; with nothing void, `void` is all the same."""
    for void in (False, True):
        found = values(networks(), void=void)
        assert found == pytest.approx({"dsd_pixel": 0.020181583, "dsd_category": 3.4206553e-07}, rel=1e-4)


@given(cases(), st.sampled_from(CASES))
@settings(max_examples=200, deadline=None)
def test_it_is_the_equations(case: Case, options: dict[str, Any]) -> None:
    o = DSDOptions(**options)
    grid = (case.student.logits.shape[2], case.student.logits.shape[3])
    counts = labels(case.target, grid) != IGNORE
    if o.void:
        counts = np.full_like(counts, True)
    found = values(case, **options)
    assert found["dsd_category"] == pytest.approx(category(case, o.temperature, counts), rel=1e-3, abs=1e-6)
    assert found["dsd_pixel"] == pytest.approx(pixel(case, o.taps, counts), rel=2e-3, abs=1e-4)


def test_two_cells_in_closed_form() -> None:
    """Attention (1, 0) then (0, 1) against (0, 1) then (1, 0): residuals (-1, 1) / sqrt 2 and its opposite."""
    case = make(0, batch=1, classes=1, channels=(1, 1), grid=(1, 2), teacher_grid=(1, 2), void=0)
    for outputs, (feature, logits) in (
        (case.student, ((2.0, 0), (0, 3.0))),
        (case.teacher, ((0, -5.0), (1.0, 0))),
    ):
        outputs.taps["deep"].copy_(torch.tensor(feature).view(1, 1, 1, 2))
        outputs.logits.copy_(torch.tensor(logits).view(1, 1, 1, 2))
    found = values(case, taps=("deep",))
    assert found["dsd_pixel"] == pytest.approx(2, rel=1e-5)
    assert found["dsd_category"] == 0, "one pooled cell: both maps are all there"


def test_a_picture_that_is_void_counts_for_nothing() -> None:
    case, target = make(3, void=0), make(3, void=0).target
    target[1] = IGNORE
    alone = Case(
        *(Outputs(o.logits[:1], {k: x[:1] for k, x in o.taps.items()}, None) for o in (case.student, case.teacher)),
        target[:1],
    )
    assert values(case, target, taps=("deep",)) == pytest.approx(values(alone, taps=("deep",)), rel=1e-5)


def test_the_weights_are_the_published() -> None:
    assert METHODS["dsd"].weights == {"task": 1, "dsd_pixel": 1000, "dsd_category": 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ()}, r"loss.dsd.taps = \[\]; expected one or more different features"),
        ({"taps": ("deep", "deep")}, "loss.dsd.taps"),
        ({"temperature": 0.0}, "loss.dsd.temperature = 0.0; expected 0.01 to 1000"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DSDOptions(**options)
