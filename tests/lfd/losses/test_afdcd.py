"""Af-DCD against the authors' module and its equations written out cell by cell."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lfd.errors import UsageError
from lfd.losses.afdcd import CONTRASTS, AfDCD, AfDCDOptions, EnhancedGenerator, negatives
from lfd.losses.common import IGNORE
from lfd.losses.mgd import MGD, MGDOptions
from lfd.methods import METHODS
from tests.lfd.losses.cases import Array, Case, cases, make
from tests.lfd.losses.published import filled, networks
from tests.lfd.losses.test_mgd import convolve, generated


def build(case: Case, **options: Any) -> AfDCD:
    torch.manual_seed(0)
    return AfDCD(*case.shapes, case.classes, AfDCDOptions(**options))


def values(loss: AfDCD, case: Case, seed: int = 5) -> dict[str, float]:
    torch.manual_seed(seed)
    with torch.no_grad():
        return {k: float(v) for k, v in loss(case.student, case.teacher, case.target, 1.0).items()}


Places = dict[tuple[int, int], Array]


def pooled(x: Array, count: Array, side: int) -> Places:
    """Return the maximum of each window of (C, h, w) over its cells that count, by the window's place."""
    found = {}
    for i, j in product(range(0, x.shape[1], side), range(0, x.shape[2], side)):
        here = count[i : i + side, j : j + side]
        if here.any():
            found[i // side, j // side] = x[:, i : i + side, j : j + side][:, here].max(1)
    return found


def is_negative(contrast: str, one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    same_cell, same_group = one[:2] == other[:2], one[2] == other[2]
    return {
        "omni": not same_group,
        "spatial": same_group and not same_cell,
        "channel": not same_group and same_cell,
        "all": one != other,
    }[contrast]


def contrast(o: AfDCDOptions, ours: Array, theirs: Array, counts: Array) -> float:
    size = -(-ours.shape[1] // o.groups)
    groups = -(-ours.shape[1] // size)
    terms = []
    for x, y, count in zip(ours, theirs, counts, strict=True):
        anchors, goals = pooled(x, count, o.pool), pooled(y, count, o.pool)
        vectors = [(*place, group) for place in goals for group in range(groups)]

        def score(
            one: tuple[int, int, int], other: tuple[int, int, int], a: Places = anchors, g: Places = goals
        ) -> float:
            s, t = a[one[:2]], g[other[:2]]
            cut_s, cut_t = (slice(v * size, (v + 1) * size) for v in (one[2], other[2]))
            length = max(len(s[cut_s]), len(t[cut_t]))  # the last group may be shorter
            s, t = (np.pad(v, (0, length - len(v))) for v in (s[cut_s], t[cut_t]))
            return float(-np.abs(s - t).sum() / o.temperature)

        for one in vectors:
            scores = [score(one, one)]
            for other in vectors:
                same_patch = all(a // o.patch == b // o.patch for a, b in zip(one[:2], other[:2], strict=True))
                if same_patch and is_negative(o.contrast, one, other):
                    scores.append(score(one, other))
            top = max(scores)
            terms.append(top + np.log(np.exp(np.array(scores) - top).sum()) - scores[0])
    return groups * float(np.mean(terms)) if terms else 0.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"pool": 2, "patch": 2, "groups": 16}, 351.2786), ({"pool": 1, "patch": 4, "groups": 8}, 426.9563)],
)
def test_it_is_the_authors(options: dict[str, Any], expected: float) -> None:
    """Values of their OmniContrastiveFeatureLoss, with nothing hidden, where windows and patches fit the grid."""
    case = networks()
    loss = build(case, mask_ratio=0.0, **options)
    assert isinstance(loss.generate.generator, nn.Sequential)
    with torch.no_grad():
        for key, layer in enumerate((loss.generate.align, loss.generate.generator[0], loss.generate.generator[2])):
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            layer.weight.copy_(filled(10 + key, *layer.weight.shape) * (3 / layer.weight[0].numel()) ** 0.5)
            layer.bias.copy_(filled(20 + key, 80))
    found = values(loss, case)
    assert found == pytest.approx({"afdcd_fd": 8982.5381, "afdcd_contrast": expected}, rel=1e-5)


@given(
    cases(),
    st.sampled_from(CONTRASTS),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([0.07, 3.0]),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_it_is_the_equation(
    case: Case, kind: str, pool: int, patch: int, groups: int, temperature: float, void: bool
) -> None:
    loss = build(
        case, tap="deep", contrast=kind, pool=pool, patch=patch, groups=groups, temperature=temperature, void=void
    )
    height, width = case.student.taps["deep"].shape[2:]
    student, teacher, y = case.arrays("deep")
    student, teacher = (x.reshape(*x.shape[:2], height, width) for x in (student, teacher))
    counts = (np.full_like(y, True, bool) if void else y != IGNORE).reshape(-1, height, width)
    torch.manual_seed(5)
    shown = (torch.rand(len(y), height, width) <= 0.25).numpy() * counts
    expected = contrast(loss.options, generated(loss, student, shown), teacher, counts)
    assert values(loss, case)["afdcd_contrast"] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_generation_is_mgds() -> None:
    case = make(2)
    loss = build(case, tap="deep")
    mgd = MGD(*case.shapes, case.classes, MGDOptions(tap="deep"))
    mgd.generate.load_state_dict(loss.generate.state_dict())
    torch.manual_seed(5)
    with torch.no_grad():
        expected = float(mgd(case.student, case.teacher, case.target, 1.0)["mgd"])
    assert values(loss, case)["afdcd_fd"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("contrast", "count"), [("omni", 6 * 4), ("spatial", 5), ("channel", 4), ("all", 29)])
def test_how_many_negatives_there_are(contrast: str, count: int) -> None:
    """Six cells of five groups."""
    assert (negatives(contrast, 6, 5, torch.device("cpu")).sum(1) == count).all()


def test_one_cell_of_two_groups_in_closed_form() -> None:
    """x = (1, 4), y = (1, 3): to the own 0 and 1 apart, to the other 2 and 3."""
    case = make(0, batch=1, classes=1, channels=(2, 2), grid=(1, 1), teacher_grid=(1, 1), void=0)
    loss = build(case, tap="deep", groups=2, temperature=1.0)
    x, y = (torch.tensor(v).view(1, 2, 1, 1) for v in ([1.0, 4], [1.0, 3]))
    found = float(loss._contrast(x, y, torch.ones(1, 1, 1)))
    expected = np.log(1 + np.exp(-2)) + np.log(1 + np.exp(1 - 3))
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_enhanced_generator_is_the_mean_of_its_two_outputs() -> None:
    torch.manual_seed(0)
    generator, x = EnhancedGenerator(3), torch.randn(2, 3, 5, 6)
    first = np.maximum(convolve(generator.first, x.double().numpy()), 0)
    second = np.maximum(convolve(generator.second, first), 0)
    expected = (convolve(generator.from_first, first) + convolve(generator.from_second, second)) / 2
    np.testing.assert_allclose(generator(x).detach().numpy(), expected, atol=1e-5)
    assert isinstance(build(make(0), tap="deep", generator="enhanced").generate.generator, EnhancedGenerator)


def test_the_published_settings() -> None:
    """Of the authors' script for Cityscapes and the defaults of their module."""
    assert METHODS["afdcd"].weights == {"task": 1, "kd": 1, "afdcd_fd": 2e-6, "afdcd_contrast": 0.005}
    o = AfDCDOptions()
    assert (o.mask_ratio, o.temperature, o.pool, o.patch, o.groups) == (0.75, 0.07, 4, 4, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast": "both"}, "loss.afdcd.contrast 'both'"),
        ({"generator": "better"}, "loss.afdcd.generator 'better'"),
        ({"mask_ratio": 1.5}, "loss.afdcd.mask_ratio = 1.5; expected 0 to 0.99"),
        ({"temperature": 0.0}, "loss.afdcd.temperature"),
        ({"pool": 0}, "loss.afdcd.pool = 0; expected 1 to 64"),
        ({"patch": 0}, "loss.afdcd.patch = 0; expected 1 to 16"),
        ({"groups": 0}, "loss.afdcd.groups = 0; expected 1 to 256"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AfDCDOptions(**options)
