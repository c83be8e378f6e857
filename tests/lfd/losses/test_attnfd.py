"""AttnFD against the authors' modules and its equations written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lfd.errors import UsageError
from lfd.losses.attnfd import CBAM, AttnFD, AttnFDOptions, Connector
from lfd.losses.common import IGNORE
from lfd.losses.masked_norm import MaskedBatchNorm2d
from lfd.methods import METHODS
from tests.lfd.losses.cases import Array, Case, cases, make
from tests.lfd.losses.published import filled, networks


def build(case: Case, **options: Any) -> AttnFD:
    torch.manual_seed(0)
    loss = AttnFD(*case.shapes, case.classes, AttnFDOptions(**options))
    for norm in loss.modules():
        if isinstance(norm, MaskedBatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return loss


def value(loss: AttnFD, case: Case) -> float:
    with torch.no_grad():
        return float(loss(case.student, case.teacher, case.target, 1.0)["attnfd"])


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def array(x: torch.Tensor) -> Array:
    return x.detach().double().numpy()


def normed(norm: MaskedBatchNorm2d, x: Array, counts: Array) -> Array:
    """Batch norm by the cells that count, of (B, C, h, w)."""
    weight, bias = array(norm.weight)[:, None], array(norm.bias)[:, None]
    columns = x.transpose(1, 0, 2, 3)[:, counts]
    mean, variance = (columns.mean(1), columns.var(1)) if counts.any() else (np.zeros(x.shape[1]), np.ones(x.shape[1]))
    flat = (x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1) - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5)
    return (flat * weight + bias).reshape(x.shape[1], len(x), *x.shape[2:]).transpose(1, 0, 2, 3)


def refined(gates: nn.Module, x: Array, counts: Array) -> Array:
    """CBAM, picture by picture and cell by cell; counts (B, h, w) bool."""
    x, plain = x.copy(), not isinstance(gates, CBAM)
    height, width = x.shape[2:]
    for index, count in enumerate(counts):
        picture = x[index]
        mean, largest = (f(picture[:, count], 1) if count.any() else np.zeros(len(picture)) for f in (np.mean, np.max))
        if plain:
            gate = mean + largest
        else:
            w1, b1, w2, b2 = (
                array(p) for p in (getattr(gates.channel[i], k) for i in (0, 2) for k in ("weight", "bias"))
            )
            gate = sum(w2 @ np.maximum(w1 @ v + b1, 0) + b2 for v in (mean, largest))
        x[index] = picture * sigmoid(gate)[:, None, None]
    summary = np.stack([x.max(1), x.mean(1)], 1) * counts[:, None]
    if plain:
        scores = summary.sum(1, keepdims=True)
    else:
        wide = np.pad(summary, ((0, 0), (0, 0), (3, 3), (3, 3)))
        kernel = array(gates.spatial.weight)[0]
        scores = np.zeros((len(x), 1, height, width))
        for i in range(height):
            for j in range(width):
                scores[:, 0, i, j] = (wide[:, :, i : i + 7, j : j + 7] * kernel).sum((1, 2, 3))
        scores = normed(gates.norm, scores, counts)
    return x * sigmoid(scores) * counts[:, None]


def reference(loss: AttnFD, case: Case) -> float:
    total, o = 0.0, loss.options
    for tap, connect, gates in zip(o.taps, loss.connect, loss.refine, strict=True):
        height, width = case.student.taps[tap].shape[2:]
        student, teacher, y = case.arrays(tap)
        student, teacher = (x.reshape(*x.shape[:2], height, width) for x in (student, teacher))
        counts = (np.full_like(y, True, bool) if o.void else y != IGNORE).reshape(-1, height, width)
        assert isinstance(connect, Connector)
        ours = np.einsum(
            "oc,bchw->bohw", array(connect.project.weight)[:, :, 0, 0], refined(connect.refine, student, counts)
        )
        ours = normed(connect.norm, ours, counts) * counts[:, None]
        theirs = refined(gates, teacher, counts)
        if o.norm == "batch":
            ours, theirs = (x / max(np.sqrt((x**2).sum()), 1e-6) for x in (ours, theirs))
        else:
            ours, theirs = (x / np.maximum(np.sqrt((x**2).sum((1, 2, 3), keepdims=True)), 1e-6) for x in (ours, theirs))
        total += float(((ours - theirs) ** 2).sum() / len(ours))
    return total


@pytest.mark.parametrize(("teacher", "expected"), [("initial", 1.0041071), ("plain", 1.0011777)])
def test_it_is_the_authors(teacher: str, expected: float) -> None:
    """Values of their CBAM, connector and loss; `plain` is the gate that their cbam.py has for a teacher."""
    case = networks()
    torch.manual_seed(0)
    loss = AttnFD(*case.shapes, case.classes, AttnFDOptions(taps=("stage4",), teacher=teacher))

    def put(gates: nn.Module, key: int) -> None:
        assert isinstance(gates, CBAM)
        for offset, layer in enumerate((gates.channel[0], gates.channel[2])):
            layer.weight.copy_(filled(key + offset, *layer.weight.shape))
            layer.bias.copy_(filled(key + 5 + offset, *layer.bias.shape))
        gates.spatial.weight.copy_(filled(key + 9, 1, 2, 7, 7))

    connect = loss.connect[0]
    assert isinstance(connect, Connector)
    with torch.no_grad():
        put(connect.refine, 30)
        connect.project.weight.copy_(filled(50, 80, 64, 1, 1))
        if teacher == "initial":
            put(loss.refine[0], 40)
    assert value(loss, case) == pytest.approx(expected, rel=1e-5)


@given(
    cases(),
    st.sampled_from([("deep",), ("stage2", "deep")]),
    st.sampled_from(["initial", "plain"]),
    st.sampled_from(["batch", "picture"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_equations(case: Case, taps: tuple[str, ...], teacher: str, norm: str, void: bool) -> None:
    loss = build(case, taps=taps, teacher=teacher, norm=norm, void=void)
    assert value(loss, case) == pytest.approx(reference(loss, case), rel=5e-3, abs=1e-5)


def test_maps_of_one_direction_are_alike() -> None:
    """|n(x) - n(y)|^2 = 2 - 2 cos: the same map at another length is at distance 0, its opposite at 4."""
    case = make(0, batch=1, void=0)
    loss = build(case, taps=("deep",))
    counts = torch.ones(1, *case.student.taps["deep"].shape[2:])
    x = case.teacher.taps["deep"]
    for factor, expected in ((1, 0), (7, 0), (-2, 4)):
        gap = loss._unit(x, counts) - loss._unit(factor * x, counts)
        assert float(gap.square().sum()) == pytest.approx(expected, abs=1e-5)


def test_the_norm_of_a_picture_gives_the_mean_of_the_pictures_terms() -> None:
    """Twice the same picture: by the batch's length it is half of that, as published."""
    one = make(4, batch=1, void=0)
    two = Case(
        *(
            type(o)(o.logits.repeat(2, 1, 1, 1), {k: x.repeat(2, 1, 1, 1) for k, x in o.taps.items()}, None)
            for o in (one.student, one.teacher)
        ),
        one.target.repeat(2, 1, 1),
    )
    for norm, ratio in (("batch", 0.5), ("picture", 1)):
        loss = build(one, taps=("deep",), norm=norm)
        assert value(loss, two) == pytest.approx(ratio * value(loss, one), rel=1e-4)


def test_the_teachers_gates_are_kept_and_never_trained() -> None:
    case = make(0)
    loss = build(case, taps=("deep",))
    assert not list(loss.refine.parameters())
    other = AttnFD(*case.shapes, case.classes, AttnFDOptions(taps=("deep",)))
    assert value(other, case) != value(loss, case)
    other.load_state_dict(loss.state_dict())
    assert value(other, case) == value(loss, case)


def test_the_weight_is_the_published() -> None:
    assert METHODS["attnfd"].weights == {"task": 1, "attnfd": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ()}, r"loss.attnfd.taps = \[\]"),
        ({"teacher": "trained"}, "loss.attnfd.teacher 'trained'"),
        ({"norm": "pixel"}, "loss.attnfd.norm 'pixel'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AttnFDOptions(**options)
