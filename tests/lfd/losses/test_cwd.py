"""CWD against the CIRKD repository's values and its equations written out in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lfd.errors import UsageError
from lfd.losses.common import IGNORE
from lfd.losses.cwd import CWD, CWDOptions
from lfd.methods import plan
from tests.lfd.losses.cases import Array, Case, cases, evaluate, golden, make

CASES: list[dict[str, Any]] = [
    {},
    {"on": "feature"},
    {"on": "logits"},
    {"tap": "stage2"},
    {"temperature": 1.0},
    {"void": True},
]


def log_softmax(x: Array) -> Array:
    x = x - x.max()
    shifted: Array = x - np.log(np.exp(x).sum())
    return shifted


def reference(student: Array, teacher: Array, counts: Array, temperature: float) -> float:
    """Equations of section 3.2 over the positions that count; pictures without any left out."""
    found = []
    for s, t, count in zip(student, teacher, counts, strict=True):
        if count.any():
            each = []
            for y_s, y_t in zip(s[:, count], t[:, count], strict=True):
                phi_s, phi_t = log_softmax(y_s / temperature), log_softmax(y_t / temperature)
                each.append((np.exp(phi_t) * (phi_t - phi_s)).sum())
            found.append(temperature**2 * np.mean(each))
    return float(np.mean(found)) if found else 0.0


def terms(case: Case, **options: Any) -> tuple[CWD, dict[str, float]]:
    torch.manual_seed(0)
    loss = CWD(*case.shapes, case.classes, CWDOptions(**options))
    return loss, evaluate(loss, case)


def expected(loss: CWD, case: Case, part: str) -> float:
    s, t, y = case.arrays("logits" if part == "cwd_logit" else loss.options.tap)
    if part == "cwd_fea" and isinstance(loss.adapter, nn.Conv2d):
        s = np.einsum("oc,bcn->bon", loss.adapter.weight.detach().double().numpy()[:, :, 0, 0], s)
    return reference(s, t, np.full(y.shape, True) if loss.options.void else y != IGNORE, loss.options.temperature)


@pytest.mark.shared
def test_it_is_the_cirkd_repositorys(real: Path) -> None:
    case, values = golden(real)
    _, found = terms(case, void=True)
    wanted = {"cwd_logit": values["loss_cwd_logit_T4"], "cwd_fea": values["loss_cwd_feature_T4"]}
    assert found == pytest.approx(wanted, rel=1e-5)


@given(cases(), st.sampled_from([0.5, 4.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_the_equation(case: Case, temperature: float, void: bool) -> None:
    loss, found = terms(case, temperature=temperature, void=void)
    wanted = {part: expected(loss, case, part) for part in ("cwd_fea", "cwd_logit")}
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_options_choose_what_is_compared(options: dict[str, Any]) -> None:
    loss, found = terms(make(3), **options)
    assert tuple(found) == CWD.active(loss.options)
    assert found == pytest.approx({part: expected(loss, make(3), part) for part in found}, rel=1e-4)
    assert CWD.needs(loss.options) == (() if options.get("on") == "logits" else (options.get("tap", "deep"),))


def test_two_positions_in_closed_form() -> None:
    """A channel of two positions is a coin: with logits 0 against T log 3, KL((3/4, 1/4) || (1/2, 1/2)) T^2."""
    case = make(0, batch=1, classes=1, channels=(1, 1), grid=(1, 2), teacher_grid=(1, 2), void=0)
    case.student.logits.zero_()
    case.teacher.logits.copy_(torch.tensor([4 * np.log(3), 0]).view(1, 1, 1, 2))
    _, found = terms(case, on="logits")
    assert found["cwd_logit"] == pytest.approx(16 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5)), rel=1e-5)


@pytest.mark.parametrize(("channels", "has"), [((6, 6), False), ((6, 9), True)])
def test_an_adapter_only_where_channels_differ(channels: tuple[int, int], has: bool) -> None:
    loss, _ = terms(make(0, channels=channels))
    assert any(True for _ in loss.parameters()) is has


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "features"}, "loss.cwd.on"),
        ({"temperature": 0.0}, "loss.cwd.temperature = 0.0"),
        ({"temperature": float("nan")}, "loss.cwd.temperature"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CWDOptions(**options)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"cwd_fea": 1.0}, {"on": "logits"}, "cwd_fea = 1 has no effect"),
        ({"cwd_fea": 0.0}, {"tap": "stage2"}, "loss.cwd.tap = 'stage2' has no effect"),
    ],
)
def test_what_has_no_effect_is_refused(weights: dict[str, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan("cwd", weights, options={"cwd": options})
