"""LFD's masks against values worked out by hand and a second implementation in numpy, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfd.losses.common import IGNORE, UNKNOWN, counted, to_cells
from lfd.losses.masks import CLASS, SPATIAL, ClassMask, dice_error, kl_by_class, spatial_evidence, spatial_mask

Array = npt.NDArray[Any]
K = 4


def log_softmax(z: Array) -> Array:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def kl_map(t: Array, s: Array, temperature: float = 1.0) -> Array:
    log_t, log_s = log_softmax(t / temperature), log_softmax(s / temperature)
    return (np.exp(log_t) * (log_t - log_s)).sum(1) * temperature**2


def cells_of(target: Array, hw: tuple[int, ...]) -> Array:
    """The label under the centre of each cell."""
    rows, columns = (
        ((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(hw, target.shape[1:], strict=True)
    )
    return target[:, rows][:, :, columns]


def known_of(target: Array, hw: tuple[int, ...]) -> Array:
    return cells_of(target, hw) != IGNORE


def spatial_reference(kind: str, s: Array, t: Array, target: Array, base: float = 0.5, clip: float = 5.0) -> Array:
    hw = s.shape[2:]
    if kind == "uniform":
        return np.ones((len(s), *hw))
    cells, known = cells_of(target, hw), known_of(target, hw)
    truth = np.where(cells >= IGNORE, 0, cells)[:, None]
    log_t = log_softmax(t)
    if kind == "confidence":
        m = np.exp(log_t).max(1)
    elif kind == "certainty":
        m = 1 + (np.exp(log_t) * log_t).sum(1) / np.log(t.shape[1])
    elif kind == "gap":
        p_t, p_s = (np.take_along_axis(np.exp(log_softmax(z)), truth, 1)[:, 0] for z in (t, s))
        m = np.where(cells >= IGNORE, 0, np.maximum(0, p_t - p_s))
    else:
        m = kl_map(t, s)
        if kind == "disagreement_correct":
            m = m * ((cells == UNKNOWN) | (t.argmax(1) == truth[:, 0]))
    mean = m[known].mean() if known.any() else 0.0
    return base + (1 - base) * np.clip(m / mean if mean > 1e-8 else np.ones_like(m), 0, clip)


def class_reference(
    kind: str,
    w: Array,
    s: Array,
    t: Array,
    target: Array,
    bounds: tuple[float, float] = (0.5, 2),
    momentum: float = 0.99,
) -> Array:
    """The class weights after one more batch."""
    hw, classes = s.shape[2:], np.arange(s.shape[1])
    if kind == "uniform":
        return w
    if kind in ("dice", "gate"):
        cells = cells_of(target, hw)
        labelled_cells = cells < IGNORE
        p = np.exp(log_softmax(s)).transpose(0, 2, 3, 1)[labelled_cells]
        y = cells[labelled_cells][:, None] == classes
        present = y.any(0)
        error = 1 - 2 * (p * y).sum(0) / np.maximum(p.sum(0) + y.sum(0), 1e-12)
    else:
        known = known_of(target, hw)
        seen = t.argmax(1)[known][:, None] == classes
        present = seen.any(0)
        error = (kl_map(t, s)[known][:, None] * seen).sum(0) / np.maximum(seen.sum(0), 1)
    if kind == "presence":
        return np.where(present, 1.0, bounds[0])
    if not present.any():
        return w
    wanted = np.clip(error / error[present].mean(), *bounds)
    return np.where(present, momentum * w + (1 - momentum) * wanted, w)


def numpy(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy() if tensor.is_floating_point() else tensor.numpy()


def batch(seed: int, void: float, film: bool = False, grid: tuple[int, int] = (5, 7)) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits and a target twice as large, of which about `void` is void; class 3 is absent."""
    rng = torch.Generator().manual_seed(seed)
    s, t = (2 * torch.randn(2, K, *grid, generator=rng) for _ in range(2))
    hw = (2 * grid[0], 2 * grid[1])
    target = torch.randint(0, K - 1, (2, *hw), generator=rng)
    target[torch.rand(2, *hw, generator=rng) < void] = IGNORE
    if film:
        target[0] = UNKNOWN
    return s, t, target


def two_classes(probabilities: tuple[float, ...], k: int = 2) -> Tensor:
    """Logits (1, k, 1, n) of which class 0 has these probabilities, class 1 the rest, and the others none."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    rest = [torch.full_like(p, -60.0)] * (k - 2)
    return torch.stack([p.log(), (1 - p).log(), *rest])[None, :, None].float()


def kl2(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def certainty2(p: float) -> float:
    return 1 + (p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)


# Three cells of two classes: p_t[0] = 0.9, 0.6, 0.55; p_s[0] = 0.5, 0.7, 0.8; truth 0, 1, 0; and a fourth that is void.
P_T, P_S, TRUTH = (0.9, 0.6, 0.55, 0.99), (0.5, 0.7, 0.8, 0.01), torch.tensor([[[0, 1, 0, IGNORE]]])
EVIDENCE = {
    "disagreement": (kl2(0.9, 0.5), kl2(0.6, 0.7), kl2(0.55, 0.8)),
    "confidence": (0.9, 0.6, 0.55),
    "certainty": (certainty2(0.9), certainty2(0.6), certainty2(0.55)),
    "gap": (0.4, 0.1, 0.0),  # 0.9 - 0.5, (1 - 0.6) - (1 - 0.7), max(0, 0.55 - 0.8)
    "disagreement_correct": (kl2(0.9, 0.5), 0.0, kl2(0.55, 0.8)),  # the teacher takes the second cell for class 0
    "uniform": (1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("kind", SPATIAL)
@pytest.mark.parametrize(("base", "clip"), [(0.5, 5.0), (0.2, 1.5), (0.0, 1.0), (1.0, 5.0)])
def test_spatial_masks_by_hand(kind: str, base: float, clip: float) -> None:
    m = EVIDENCE[kind]
    s, t = two_classes(P_S), two_classes(P_T)
    assert spatial_evidence(kind, s, t, TRUTH)[0, 0, :3].tolist() == pytest.approx(m, abs=1e-6)
    mean = sum(m) / 3  # over the cells that count
    expected = [1.0] * 3 if kind == "uniform" else [base + (1 - base) * min(x / mean, clip) for x in m]
    found = spatial_mask(kind, s, t, TRUTH, base, clip)
    assert found[0, 0, :3].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_clip_is_five_times_the_mean_unless_told() -> None:
    """One of 20 cells disagrees, so it is 20 times the mean."""
    s, t = two_classes((0.5,) * 20), two_classes((0.9, *(0.5,) * 19))
    target = torch.zeros(1, 1, 20, dtype=torch.long)
    assert spatial_mask("disagreement", s, t, target)[0, 0].tolist() == pytest.approx([3.0, *[0.5] * 19], abs=1e-5)


@pytest.mark.parametrize("kind", SPATIAL)
@given(
    seed=st.integers(0, 2**31),
    void=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    film=st.booleans(),
    base=st.floats(0, 1),
    clip=st.floats(1, 20),
)
@settings(max_examples=15, deadline=None)
def test_spatial_masks_are_numpys(kind: str, seed: int, void: float, film: bool, base: float, clip: float) -> None:
    s, t, target = batch(seed, void, film)
    found = spatial_mask(kind, s, t, target, base, clip)
    expected = spatial_reference(kind, numpy(s), numpy(t), numpy(target), base, clip)
    known = known_of(numpy(target), (5, 7))
    assert found.dtype == torch.float32 and not found.requires_grad
    np.testing.assert_allclose(numpy(found)[known], expected[known], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["disagreement", "certainty", "gap", "disagreement_correct"])
@pytest.mark.parametrize("base", [0.0, 0.5])
def test_a_mask_without_evidence_is_flat_and_positive(kind: str, base: float) -> None:
    """Else, with base 0, a step on film (gap) or between equal networks would train no feature."""
    z = torch.zeros(2, 2, 3, 3)
    mask = spatial_mask(kind, z, z, torch.full((2, 6, 6), UNKNOWN), base)
    assert (mask > 0).all() and (mask == mask[0, 0, 0]).all()


@pytest.mark.parametrize("kind", SPATIAL)
def test_void_cells_do_not_move_the_others(kind: str) -> None:
    s, t, _ = batch(0, 0)
    target = batch(0, 0.4)[2]
    cells = to_cells(target, (5, 7)) == IGNORE
    before = spatial_mask(kind, s, t, target)
    for z, value in ((s, 50.0), (t, -50.0)):
        z[:, 0][cells] = value
    assert torch.equal(spatial_mask(kind, s, t, target)[~cells], before[~cells])


@pytest.mark.parametrize("kind", [*SPATIAL, *CLASS])
def test_no_mask_carries_a_gradient(kind: str) -> None:
    s, t, target = batch(0, 0.3)
    s.requires_grad_()
    t.requires_grad_()
    if kind in SPATIAL:
        assert not spatial_mask(kind, s, t, target).requires_grad
    if kind in CLASS:
        mask = ClassMask(kind, K, (0.5, 2), 0.9)
        mask.update(s, t, target)
        assert not mask.weight.requires_grad and set(mask.state_dict()) == {"weight"} and not list(mask.parameters())


def test_dice_error_in_closed_form() -> None:
    """Truth (0, 1), p(class 0) = 0.9 and 0.4: Dice_0 = 1.8 / 2.3, Dice_1 = 1.2 / 1.7; the void cell counts nowhere."""
    error, present = dice_error(two_classes((0.9, 0.4, 0.3), 3), torch.tensor([[[0, 1, IGNORE]]]))
    assert error[:2].tolist() == pytest.approx([1 - 1.8 / 2.3, 1 - 1.2 / 1.7], rel=1e-5)
    assert present.tolist() == [True, True, False]


def test_kl_by_class_in_closed_form() -> None:
    """The teacher sees class 0 in two cells, class 1 in one, and in a void one."""
    s, t = two_classes((0.5, 0.7, 0.6, 0.9), 3), two_classes((0.9, 0.6, 0.2, 0.1), 3)
    error, present = kl_by_class(s, t, torch.tensor([[[0, 0, 2, IGNORE]]]))
    assert error.tolist() == pytest.approx([(kl2(0.9, 0.5) + kl2(0.6, 0.7)) / 2, kl2(0.2, 0.6), 0], rel=1e-5)
    assert present.tolist() == [True, True, False]


E_DICE = (1 - 1.8 / 2.3, 1 - 1.2 / 1.7)
E_KL = (kl2(0.6, 0.9), kl2(0.2, 0.4))


@pytest.mark.parametrize("kind", CLASS)
@pytest.mark.parametrize("bounds", [(0.5, 2.0), (0.9, 1.1)])
def test_class_weights_by_hand(kind: str, bounds: tuple[float, float]) -> None:
    """Two steps of the same two cells, truth (0, 1); class 2 is absent, w starts at 1."""
    mask = ClassMask(kind, 3, bounds, 0.8)
    for _ in range(2):
        mask.update(two_classes((0.9, 0.4), 3), two_classes((0.6, 0.2), 3), torch.tensor([[[0, 1]]]))
    expected = [1.0, 1.0, bounds[0] if kind == "presence" else 1.0]
    if kind in ("dice", "gate", "kl"):
        e = E_KL if kind == "kl" else E_DICE
        wanted = [min(max(x / (sum(e) / 2), bounds[0]), bounds[1]) for x in e]
        expected[:2] = [0.8 * (0.8 + 0.2 * x) + 0.2 * x for x in wanted]
    assert mask.weight.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", CLASS)
@given(
    seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4),
    void=st.sampled_from([0.0, 0.4, 1.0]),
    film=st.booleans(),
    low=st.floats(0, 1),
    high=st.floats(1, 10),
    momentum=st.floats(0, 0.999),
)
@settings(max_examples=15, deadline=None)
def test_class_weights_are_numpys_over_several_steps(
    kind: str, seeds: list[int], void: float, film: bool, low: float, high: float, momentum: float
) -> None:
    mask, expected = ClassMask(kind, K, (low, high), momentum), np.ones(K)
    for seed in seeds:
        s, t, target = batch(seed, void, film)
        mask.update(s, t, target)
        expected = class_reference(kind, expected, *map(numpy, (s, t, target)), (low, high), momentum)
    np.testing.assert_allclose(numpy(mask.weight), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["dice", "gate", "kl"])
def test_absent_classes_stay_to_the_bit_and_the_average_is_slow_by_default(kind: str) -> None:
    mask = ClassMask(kind, K, (0.5, 2), 0.99)
    mask.weight.copy_(torch.tensor([1.0, 0.7, 1.3, 1.7]))
    s, t, target = batch(0, 0.2)
    t[:, 3] = -50  # the teacher does not see it either
    mask.update(s, t, target)
    assert mask.weight[3] == torch.tensor(1.7)
    change = (mask.weight[:3] - torch.tensor([1.0, 0.7, 1.3])).abs()
    assert (change > 0).all() and (change <= 0.01 * 1.5).all()


@pytest.mark.parametrize("kind", CLASS)
def test_void_cells_move_no_class_weight(kind: str) -> None:
    weights = []
    target = batch(0, 0.4)[2]
    for spoil in (0.0, 50.0):
        s, t, _ = batch(0, 0)
        cells = to_cells(target, (5, 7)) == IGNORE
        s[:, 1][cells] += spoil
        t[:, 3][cells] += spoil
        mask = ClassMask(kind, K, (0.5, 2), 0.5)
        mask.update(s, t, target)
        weights.append(mask.weight.clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("kind", CLASS)
def test_without_labels_only_the_kinds_that_need_none_move(kind: str) -> None:
    s, t, _ = batch(0, 0)
    t[:, 3] = -50
    mask = ClassMask(kind, K, (0.5, 2), 0.5)
    mask.update(s, t, torch.full((2, 10, 14), UNKNOWN))
    assert bool((mask.weight != 1).any()) == (kind in ("kl", "presence"))


@pytest.mark.parametrize("kind", ["dice", "gate", "kl", "presence"])
def test_an_unlabelled_picture_of_a_batch_counts_where_no_label_is_needed(kind: str) -> None:
    s, t, target = batch(0, 0.2, film=True)
    both, labelled_one = ClassMask(kind, K, (0.5, 2), 0.5), ClassMask(kind, K, (0.5, 2), 0.5)
    t[1, 2] = -50  # seen in the film alone
    both.update(s, t, target)
    labelled_one.update(s[1:], t[1:], target[1:])
    assert torch.equal(both.weight, labelled_one.weight) == (kind in ("dice", "gate"))


@pytest.mark.parametrize("hw", [(5, 7), (10, 14), (3, 4), (20, 28), (1, 1)])
def test_cells_take_the_label_under_their_centre(hw: tuple[int, int]) -> None:
    target = batch(1, 0.4, film=True)[2]
    assert np.array_equal(numpy(to_cells(target, hw)), cells_of(numpy(target), hw))
    assert np.array_equal(numpy(counted(target, hw)), known_of(numpy(target), hw))


def test_an_unlabelled_picture_counts_everywhere_and_a_void_cell_nowhere() -> None:
    target = torch.full((2, 4, 4), UNKNOWN)
    target[1] = IGNORE
    target[1, :2] = 0
    assert counted(target, (2, 2)).tolist() == [[[1, 1], [1, 1]], [[1, 1], [0, 0]]]


def test_class_weights_move_by_a_share_in_each_part_of_a_step_and_never_to_nan() -> None:
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    whole, parts = (ClassMask("dice", 3, (0.5, 2.0), 0.9) for _ in range(2))
    whole.update(logits, logits, target)
    for _ in range(2):
        parts.update(logits, logits, target, parts=2)
    assert torch.allclose(whole.weight, parts.weight) and not torch.equal(whole.weight, torch.ones(3))
    before = whole.weight.clone()
    whole.update(logits * math.nan, logits, target)
    assert torch.equal(whole.weight, before)
