"""MGD against the authors' module and its equations written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lfd.errors import UsageError
from lfd.losses.common import IGNORE
from lfd.losses.mgd import MGD, MGDOptions
from lfd.methods import METHODS
from tests.lfd.losses.cases import Array, Case, cases, make
from tests.lfd.losses.published import filled, networks


def build(case: Case, **options: Any) -> MGD:
    torch.manual_seed(0)
    return MGD(*case.shapes, case.classes, MGDOptions(**options))


def value(loss: MGD, case: Case, seed: int = 5) -> float:
    torch.manual_seed(seed)
    with torch.no_grad():
        return float(loss(case.student, case.teacher, case.target, 1.0)["mgd"])


def convolve(layer: nn.Module, x: Array) -> Array:
    """Return the convolution of (B, C, h, w), at the same size."""
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    reach = weight.shape[2] // 2
    wide = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    h, w = x.shape[2:]
    total = np.zeros((len(x), len(weight), h, w)) + bias[:, None, None]
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            total += np.einsum("oc,bchw->bohw", weight[:, :, i, j], wide[:, :, i : i + h, j : j + w])
    return total


def generated(loss: Any, feature: Array, shown: Array) -> Array:
    """Return G(align(F_s) M) of an `MGD`, or of whatever else has its `generate`."""
    align, (first, _, last) = loss.generate.align, loss.generate.generator
    x = feature if isinstance(align, nn.Identity) else convolve(align, feature)
    return convolve(last, np.maximum(convolve(first, x * shown[:, None]), 0))


def test_it_is_the_authors() -> None:
    """The value of their FeatureLoss, with nothing hidden."""
    case = networks()
    loss = build(case, mask_ratio=0.0)
    assert isinstance(loss.generate.generator, nn.Sequential)
    with torch.no_grad():
        for key, layer in enumerate((loss.generate.align, loss.generate.generator[0], loss.generate.generator[2])):
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            layer.weight.copy_(filled(10 + key, *layer.weight.shape) * (3 / layer.weight[0].numel()) ** 0.5)
            layer.bias.copy_(filled(20 + key, 80))
    assert value(loss, case) == pytest.approx(8982.5381, rel=1e-5)


@given(cases(), st.sampled_from(["deep", "stage2"]), st.floats(0, 0.99), st.booleans())
@settings(max_examples=50, deadline=None)
def test_it_is_the_equation(case: Case, tap: str, ratio: float, void: bool) -> None:
    """Void is hidden from the generator, and the mean over the other cells stands for it."""
    loss = build(case, tap=tap, mask_ratio=ratio, void=void)
    height, width = case.student.taps[tap].shape[2:]
    student, teacher, y = case.arrays(tap)
    student, teacher = (x.reshape(*x.shape[:2], height, width) for x in (student, teacher))
    counts = (np.full_like(y, 1) if void else y != IGNORE).reshape(-1, height, width).astype(float)
    torch.manual_seed(5)
    shown = (torch.rand(len(y), height, width) <= 1 - ratio).numpy() * counts
    error = ((generated(loss, student, shown) - teacher) ** 2).sum(1)
    expected = (error * counts).sum() / counts.sum() * height * width if counts.any() else 0.0
    assert value(loss, case) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_share_of_hidden_cells_is_the_ratio() -> None:
    case = make(0, grid=(60, 70), teacher_grid=(60, 70), void=0, size=(60, 70))
    loss = build(case, tap="deep")
    seen: list[torch.Tensor] = []
    loss.generate.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    value(loss, case)
    hidden = (seen[0] == 0).all(1)
    assert float(hidden.float().mean()) == pytest.approx(0.75, abs=0.02)
    assert torch.equal(hidden, (seen[0] == 0).any(1)), "all channels of a cell at once"


def test_equal_channels_need_no_alignment() -> None:
    assert isinstance(build(make(0, channels=(12, 12)), tap="deep").generate.align, nn.Identity)
    assert isinstance(build(make(0, channels=(7, 12)), tap="deep").generate.align, nn.Conv2d)


def test_each_step_hides_other_cells_and_a_seed_the_same() -> None:
    case = make(1)
    loss = build(case, tap="deep")
    assert value(loss, case, 1) == value(loss, case, 1) != value(loss, case, 2)


def test_the_published_settings() -> None:
    assert METHODS["mgd"].weights == {"task": 1, "mgd": 2e-5}
    assert (MGDOptions().tap, MGDOptions().mask_ratio) == ("stage4", 0.75)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_options_out_of_range_are_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match=r"loss.mgd.mask_ratio = .*; expected 0 to 0.99"):
        MGDOptions(mask_ratio=ratio)
