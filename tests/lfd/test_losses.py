"""Losses against other people's values, a second implementation in numpy, and the promises of their docstrings."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lfd.balance import Balance
from lfd.errors import UsageError
from lfd.losses import LOSSES
from lfd.losses.common import (
    IGNORE,
    UNKNOWN,
    DistillLoss,
    cross_entropy,
    kl_per_pixel,
    masked_mean,
    overall_mean,
    to_grid,
)
from lfd.losses.kd import KD, KDOptions
from lfd.losses.lfd import LFD, WITHOUT_EFFECT, LFDOptions
from lfd.losses.masks import CLASS, SPATIAL
from lfd.methods import METHODS, Plan, plan
from lfd.taps import Outputs, TapInfo
from tests.lfd.test_masks import (
    Array,
    cells_of,
    class_reference,
    kl_map,
    known_of,
    log_softmax,
    numpy,
    spatial_reference,
)

B, K, H, W = 2, 5, 6, 8
Shapes = dict[str, TapInfo]


def shapes(channels: int, grid: tuple[int, int] = (H, W)) -> Shapes:
    return {"logits": TapInfo(K, grid), "deep": TapInfo(channels, grid)}


STUDENT, TEACHER = shapes(7), shapes(12)

LFD_CASES: list[dict[str, Any]] = [
    {},
    *({"spatial_mask": kind} for kind in SPATIAL),
    {"mask_base": 0.0},
    {"mask_base": 1.0},
    {"mask_base": 0.1, "mask_clip": 1.2},
    *({"class_mask": kind, "class_momentum": 0.3} for kind in CLASS),
    {"class_bounds": (0.9, 1.1), "class_momentum": 0.0},
    {"class_bounds": (0.0, 50.0), "class_momentum": 0.0},
    *({"apply_to": where, "class_momentum": 0.3} for where in ("shared_head", "student_aux", "both")),
    *({"shared_head": head, "aux_bn": bn} for head in ("both", "teacher") for bn in ("separate", "joint")),
    {"aux_resolution": "full", "class_momentum": 0.3},
    {"aux_resolution": "feature", "class_momentum": 0.3},
    {"head_width": 3},
    {"kl_start": 0.0},
    {"kl_start": 1.0},
    {"kl_temperature": 4.0},
    {"kl_temperature": 0.5},
]
"""Every value of every switch of LFD; hypothesis draws combinations of them."""


def name_of(options: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items()) or "default"


each_case = pytest.mark.parametrize("options", LFD_CASES, ids=name_of)
any_options = (
    st.fixed_dictionaries(
        {
            "spatial_mask": st.sampled_from(SPATIAL),
            "mask_base": st.floats(0, 1),
            "mask_clip": st.floats(1, 10),
            "class_mask": st.sampled_from(CLASS),
            "class_bounds": st.tuples(st.floats(0, 1), st.floats(1, 5)),
            "class_momentum": st.floats(0, 0.99),
            "apply_to": st.sampled_from(["shared_head", "student_aux", "both"]),
            "shared_head": st.sampled_from(["both", "teacher"]),
            "head_width": st.integers(1, 9),
            "aux_resolution": st.sampled_from(["full", "feature"]),
            "aux_bn": st.sampled_from(["separate", "joint"]),
            "kl_start": st.floats(0, 1),
            "kl_temperature": st.floats(0.5, 8),
        }
    )
    .filter(lambda o: o["class_mask"] != "uniform" or o["apply_to"] == "shared_head")
    .map(dict)
)


def effective(options: dict[str, Any]) -> dict[str, Any]:
    """Return options without those that a kind of mask makes void, which would be refused."""
    void = {key for key, other, kind in WITHOUT_EFFECT if options.get(other) == kind}
    return {key: value for key, value in options.items() if key not in void}


def lfd(options: dict[str, Any], student: Shapes = STUDENT, teacher: Shapes = TEACHER) -> LFD:
    """An LFD whose head has no weight at its neutral value."""
    torch.manual_seed(0)
    loss = LFD(student, teacher, K, LFDOptions(**{"head_width": 6, **effective(options)}))
    with torch.no_grad():
        norm = loss.head[1]
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
    return loss


def outputs(shapes: Shapes, seed: int, scale: float = 1.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def make(info: TapInfo) -> Tensor:
        return (scale * torch.randn(B, info.channels, *info.grid_hw, generator=generator)).requires_grad_()

    return Outputs(make(shapes["logits"]), {"deep": make(shapes["deep"])}, None)


def a_target(kind: str = "mixed", hw: tuple[int, int] = (4 * H, 4 * W)) -> Tensor:
    if kind == "void":
        return torch.full((B, *hw), IGNORE)
    if kind == "unlabelled":
        return torch.full((B, *hw), UNKNOWN)
    if kind == "one class":
        return torch.full((B, *hw), 2)
    target = torch.randint(0, K, (B, *hw), generator=torch.Generator().manual_seed(3))
    target[:, : hw[0] // 3] = IGNORE
    if kind == "film":  # one picture without labels
        target[0] = UNKNOWN
    return target


def gradients(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in tensors]


def silent(tensors: Iterable[Tensor]) -> bool:
    return not any(gradient.any() for gradient in gradients(tensors))


# A second implementation of every term, in numpy and float64. Loops where torch has a function.


def bilinear(maps: Array, hw: tuple[int, ...], align_corners: bool = False) -> Array:
    def matrix(size: int, wanted: int) -> Array:
        at = np.arange(wanted)
        where = (
            at * (size - 1) / max(wanted - 1, 1) if align_corners else np.maximum((at + 0.5) * size / wanted - 0.5, 0)
        )
        low = np.minimum(where.astype(int), size - 1)
        found = np.zeros((wanted, size))
        found[at, low] += 1 - (where - low)
        found[at, np.minimum(low + 1, size - 1)] += where - low
        return found

    return np.einsum("bchw,ih,jw->bcij", maps, matrix(maps.shape[2], hw[0]), matrix(maps.shape[3], hw[1]))


def head(loss: LFD, x: Array) -> Array:
    """3x3 convolution, batch norm by the batch, ReLU, 1x1 convolution."""
    conv, scale, shift, last, bias = (numpy(p) for p in loss.head.parameters())
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    h, w = x.shape[2:]
    y = sum(
        np.einsum("oc,bchw->bohw", conv[:, :, i, j], wide[:, :, i : i + h, j : j + w])
        for i in range(3)
        for j in range(3)
    )
    mean, variance = y.mean((0, 2, 3), keepdims=True), y.var((0, 2, 3), keepdims=True)
    y = (y - mean) / np.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]
    return np.einsum("oc,bchw->bohw", last[:, :, 0, 0], np.maximum(y, 0)) + bias[:, None, None]


def entropy(logits: Array, target: Array, weight: Array, align_corners: bool = False) -> float:
    """Weighted cross entropy over labelled pixels, divided by the sum of their weights."""
    log_p = log_softmax(bilinear(logits, target.shape[1:], align_corners))
    b, i, j = np.nonzero(target < IGNORE)
    y = target[b, i, j]
    return float(-(weight[y] * log_p[b, y, i, j]).sum() / max(weight[y].sum(), 1e-12)) if len(y) else 0.0


def by_class(kind: str, w: Array, logits: Array, target: Array, align_corners: bool = False) -> float:
    if kind == "gate":
        return entropy(logits * w[:, None, None], target, np.ones(K), align_corners)
    return entropy(logits, target, w, align_corners)


def reference(loss: LFD, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, float]:
    """METHOD's terms for a loss that has not yet seen this batch; the new class weights under `w`."""
    o, y = loss.options, numpy(target)
    z_s, feature = numpy(student.logits), numpy(student.taps["deep"])
    hw = feature.shape[2:]
    z_s, z_t, goal = (bilinear(x, hw) for x in (z_s, numpy(teacher.logits), numpy(teacher.taps["deep"])))
    adapted = np.einsum("oc,bchw->bohw", numpy(loss.adapter.weight)[:, :, 0, 0], feature)
    known = known_of(y, hw)
    mask = spatial_reference(o.spatial_mask, z_s, z_t, y, o.mask_base, o.mask_clip) * known
    terms: dict[str, Any] = {"fea": (mask * ((adapted - goal) ** 2).mean(1)).sum() / max(mask.sum(), 1e-12)}

    w = class_reference(o.class_mask, numpy(loss.class_mask.weight), z_s, z_t, y, o.class_bounds, o.class_momentum)
    if o.aux_bn == "joint":
        of_teacher, of_student = np.split(head(loss, np.concatenate([goal, adapted])), 2)
    else:
        of_teacher, of_student = head(loss, goal), head(loss, adapted)
    truth = cells_of(y, hw) if o.aux_resolution == "feature" else y
    used = np.ones(K) if o.apply_to == "student_aux" else w
    branches = [of_teacher, of_student] if o.shared_head == "both" else [of_teacher]
    terms["aux"] = sum(by_class(o.class_mask, used, z, truth) for z in branches)
    if progress >= o.kl_start:
        terms["kl"] = kl_map(of_teacher, of_student, o.kl_temperature)[known].mean() if known.any() else 0.0
    return {**terms, "w": w}


def check_against_reference(loss: LFD, s: Outputs, t: Outputs, target: Tensor, progress: float) -> None:
    expected = reference(loss, s, t, target, progress)
    found = loss(s, t, target, progress)
    assert numpy(loss.class_mask.weight) == pytest.approx(expected.pop("w"), rel=1e-4, abs=1e-6)
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(expected, rel=1e-3, abs=1e-6)


# What all losses share


def test_kl_of_two_classes_is_the_closed_form() -> None:
    p, q = 0.8, 0.3
    teacher = torch.tensor([math.log(p), math.log(1 - p)]).view(1, 2, 1, 1)
    student = torch.tensor([math.log(q), math.log(1 - q)]).view(1, 2, 1, 1)
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(kl_per_pixel(teacher, student)) == pytest.approx(expected, rel=1e-6)


def test_the_temperature_keeps_the_gradients_size_for_small_logits() -> None:
    """Hinton et al., eq. 4: for small logits the gradient is (z_s - z_t) / K at every temperature."""
    grads = []
    for temperature in (1.0, 100.0):
        student = (torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(0)) * 1e-3).requires_grad_()
        kl_per_pixel(torch.zeros(1, 4, 1, 1), student, temperature).sum().backward()
        assert student.grad is not None
        grads.append(student.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs_mean(weighted: bool) -> None:
    logits, target = torch.randn(B, K, 4 * H, 4 * W), a_target()
    weight = torch.tensor([0.5, 1, 2, 1.5, 0.7]) if weighted else None
    expected = F.cross_entropy(logits, target, weight, ignore_index=IGNORE)
    assert float(cross_entropy(logits, target, weight)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_cross_entropy_resizes_as_the_network_does(align_corners: bool) -> None:
    logits, target, weight = torch.randn(B, K, 3, 4), a_target(), torch.tensor([0.5, 1, 2, 1.5, 0.7])
    expected = entropy(numpy(logits), numpy(target), numpy(weight), align_corners)
    assert float(cross_entropy(logits, target, weight, align_corners)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight", [None, torch.ones(K), torch.zeros(K)], ids=["plain", "weighted", "no weight"])
def test_cross_entropy_without_a_label_is_zero_and_trains_nothing(weight: Tensor | None) -> None:
    logits = torch.randn(B, K, H, W, requires_grad=True)
    loss = cross_entropy(logits, a_target("one class" if weight is not None and not weight.any() else "void"), weight)
    loss.backward()
    assert not loss.detach().any() and logits.grad is not None and not logits.grad.any()


def test_masked_means_in_closed_form() -> None:
    values, weights = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 3.0, 0.0])
    assert float(masked_mean(values, weights)) == float(overall_mean(values, weights)) == 7 / 4
    assert float(masked_mean(values, 0 * weights)) == float(overall_mean(values, 0 * weights)) == 0


def test_to_grid_leaves_what_fits_and_is_bilinear() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert to_grid(x, (3, 4)) is x
    for align_corners in (False, True):
        for hw in ((6, 8), (9, 9), (2, 3)):
            expected = bilinear(numpy(x), hw, align_corners)
            np.testing.assert_allclose(numpy(to_grid(x, hw, align_corners)), expected, atol=1e-5)


# KD


@pytest.mark.shared
@pytest.mark.parametrize(("temperature", "key"), [(1.0, "loss_kd_T1"), (4.0, "loss_kd_T4")])
def test_kd_is_the_cirkd_repositorys(real: Path, temperature: float, key: str) -> None:
    refs = np.load(real / "refs" / "losses.npz")
    s, t = (torch.from_numpy(refs[f"{who}_logits"]) for who in ("student", "teacher"))
    target = torch.from_numpy(refs["target"]).long()
    target[target < 0] = IGNORE
    loss = KD({}, {}, s.shape[1], KDOptions(temperature, void=True))
    found = loss(Outputs(s, {}, None), Outputs(t, {}, None), target, 1.0)["kd"]
    assert float(found) == pytest.approx(float(refs[key]), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize("kind", ["mixed", "void", "film"])
@pytest.mark.parametrize("grid", [(H, W), (9, 9)])
def test_kd_is_numpys_mean_over_what_counts(temperature: float, void: bool, kind: str, grid: tuple[int, int]) -> None:
    s, t, target = outputs(STUDENT, 1), outputs(shapes(12, grid), 2), a_target(kind)
    kl = kl_map(bilinear(numpy(t.logits), (H, W)), numpy(s.logits), temperature)
    counts = kl.reshape(-1) if void else kl[known_of(numpy(target), (H, W))]
    expected = counts.mean() if counts.size else 0.0
    found = KD(STUDENT, TEACHER, K, KDOptions(temperature, void))(s, t, target, 1.0)["kd"].detach()
    assert float(found) == pytest.approx(expected, rel=1e-4)


# LFD


@each_case
@pytest.mark.parametrize("kind", ["mixed", "film"])
def test_lfds_terms_are_numpys(options: dict[str, Any], kind: str) -> None:
    check_against_reference(lfd(options), outputs(STUDENT, 1), outputs(TEACHER, 2), a_target(kind), 0.5)


@given(any_options, st.integers(0, 2**20), st.sampled_from(["mixed", "film", "void", "one class"]), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_lfds_terms_are_numpys_in_any_combination(
    options: dict[str, Any], seed: int, kind: str, progress: float
) -> None:
    """Three steps, so that the moving average moves on; the teacher's grid is another."""
    teacher = shapes(12, (5, 9))
    loss = lfd(options, STUDENT, teacher)
    for step in range(3):
        s, t = outputs(STUDENT, seed + step), outputs(teacher, ~seed - step)
        check_against_reference(loss, s, t, a_target(kind), progress)


def test_lfds_terms_by_hand() -> None:
    """Two cells, one channel, two classes; adapter 2; truth (0, void), so that the first cell alone counts."""
    loss = LFD({"deep": TapInfo(1, (1, 2))}, {"deep": TapInfo(1, (1, 2))}, 2, LFDOptions(head_width=1, kl_start=0))
    conv, norm, relu, last = loss.head
    assert isinstance(conv, nn.Conv2d) and isinstance(last, nn.Conv2d) and isinstance(relu, nn.ReLU)
    assert isinstance(norm, nn.BatchNorm2d) and loss.adapter.bias is None and conv.kernel_size == (3, 3)
    norm.eval()  # running statistics 0 and 1: the norm changes nothing but the epsilon
    with torch.no_grad():
        loss.adapter.weight.fill_(2)
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1
        last.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        last.bias.zero_()
    z = torch.zeros(1, 2, 1, 2)
    s = Outputs(z, {"deep": torch.tensor([[[[1.0, 5.0]]]])}, None)  # G = 2, 10
    t = Outputs(z, {"deep": torch.tensor([[[[3.0, -7.0]]]])}, None)
    found = {name: float(value.detach()) for name, value in loss(s, t, torch.tensor([[[0, IGNORE]]]), 0.0).items()}
    # A(x) = (x, -x): -log p_0 = log(1 + exp(-2 x)). Only class 0 is there, so its weight divides itself out.
    p, q = 1 / (1 + math.exp(-6)), 1 / (1 + math.exp(-4))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found == pytest.approx({"fea": (2 - 3) ** 2, "aux": -math.log(p) - math.log(q), "kl": kl}, rel=1e-3)


@pytest.mark.parametrize("start", [0.0, 0.025, 0.5, 1.0])
def test_kl_waits_until_the_head_has_learnt(start: float) -> None:
    """Iteration 1000 of 40 000 is the default."""
    assert LFDOptions().kl_start == 1000 / 40_000
    loss, s, t = lfd({"kl_start": start}), outputs(STUDENT, 1), outputs(TEACHER, 2)
    for progress in (0.0, 0.02, 0.025, 0.4, 0.5, 0.9, 1.0):
        assert ("kl" in loss(s, t, a_target(), progress)) == (progress >= start)


@each_case
def test_gradients_go_where_the_method_sends_them(options: dict[str, Any]) -> None:
    loss, target = lfd({**options, "kl_start": 0.0}), a_target()
    frozen, joint = loss.options.shared_head == "teacher", loss.options.aux_bn == "joint"
    reached = {"fea": (True, False), "aux": (not frozen, True), "kl": (True, not frozen)}
    for part, (trains_student, trains_head) in reached.items():
        loss.zero_grad()
        s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
        terms = loss(s, t, target, 1.0)
        terms[part].backward()
        feature = s.taps["deep"]
        assert s.logits.grad is None, f"{part}: masks carry no gradient"
        assert t.logits.grad is None and t.taps["deep"].grad is None, part
        assert silent([feature]) == silent(loss.adapter.parameters()) == (not trains_student), part
        for name, parameter in loss.head.named_parameters():
            assert silent([parameter]) == (not trains_head), (part, name, joint)


@pytest.mark.parametrize("aux_bn", ["separate", "joint"])
def test_a_frozen_head_gives_kl_the_same_value_and_gradient_to_the_student(aux_bn: str) -> None:
    found = []
    for shared_head in ("both", "teacher"):
        loss = lfd({"shared_head": shared_head, "aux_bn": aux_bn, "kl_start": 0.0})
        s = outputs(STUDENT, 1)
        kl = loss(s, outputs(TEACHER, 2), a_target(), 1.0)["kl"]
        kl.backward()
        found.append((kl.detach(), s.taps["deep"].grad, loss.adapter.weight.grad))
        assert silent(loss.head.parameters()) == (shared_head == "teacher")
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and torch.allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", SPATIAL)
def test_the_masks_contrast_is_the_gradients(kind: str) -> None:
    """dL_fea / dG_i = 2 M_i (G_i - F_i) / (C sum M): the spatial gradient disparities of the abstract."""
    loss, s, t, target = lfd({"spatial_mask": kind}), outputs(STUDENT, 1), outputs(TEACHER, 2), a_target()
    loss(s, t, target, 0.0)["fea"].backward()
    adapter, y = numpy(loss.adapter.weight)[:, :, 0, 0], numpy(target)
    mask = spatial_reference(kind, numpy(s.logits), numpy(t.logits), y) * known_of(y, (H, W))
    gap = np.einsum("oc,bchw->bohw", adapter, numpy(s.taps["deep"])) - numpy(t.taps["deep"])
    expected = np.einsum("oc,bohw->bchw", adapter, 2 * mask[:, None] * gap / (gap.shape[1] * mask.sum()))
    feature = s.taps["deep"].grad
    assert feature is not None
    np.testing.assert_allclose(numpy(feature), expected, rtol=1e-3, atol=1e-6)


@each_case
def test_lfd_is_finite_on_every_kind_of_batch(options: dict[str, Any]) -> None:
    for kind in ("mixed", "film", "void", "one class"):
        for student_scale, teacher_scale in ((0.0, 0.0), (1.0, 1.0), (1e4, 1e4), (0.0, 1e4), (1e4, 0.0)):
            check_finite(lfd(options), student_scale, teacher_scale, kind)


@given(
    any_options, st.sampled_from([0.0, 1e-4, 1e4]), st.sampled_from([0.0, 1e-4, 1e4]), st.sampled_from(["film", "void"])
)
@settings(max_examples=25, deadline=None)
def test_lfd_is_finite_in_any_combination(options: dict[str, Any], student: float, teacher: float, kind: str) -> None:
    check_finite(lfd(options), student, teacher, kind)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.01}, {"temperature": 1000.0}, {"void": True}], ids=name_of)
def test_kd_is_finite_on_every_kind_of_batch(options: dict[str, Any]) -> None:
    for kind in ("mixed", "film", "void", "one class"):
        for student_scale, teacher_scale in ((0.0, 0.0), (1.0, 1.0), (1e4, 1e4), (0.0, 1e4), (1e4, 0.0)):
            check_finite(KD(STUDENT, TEACHER, K, KDOptions(**options)), student_scale, teacher_scale, kind)


def check_finite(loss: DistillLoss, student_scale: float, teacher_scale: float, kind: str) -> None:
    s, t = outputs(STUDENT, 1, student_scale), outputs(TEACHER, 2, teacher_scale)
    parts = loss(s, t, a_target(kind), 1.0)
    assert set(parts) == set(loss.parts)
    sum(parts.values(), torch.zeros(())).backward()
    for values in (parts.values(), loss.buffers(), gradients([s.logits, *s.taps.values(), *loss.parameters()])):
        assert all(torch.isfinite(v).all() for v in values), (kind, student_scale, teacher_scale)


def spoilt(of: Outputs, void: Tensor) -> Outputs:
    """The same outputs with something else in the void cells."""
    logits, deep = of.logits.detach().clone(), of.taps["deep"].detach().clone()
    logits[:, 1][void] += 9
    deep[void[:, None].expand_as(deep)] -= 3
    return Outputs(logits, {"deep": deep}, None)


@each_case
def test_void_pixels_are_inert(options: dict[str, Any]) -> None:
    """What stands in void cells, in either network, changes no term by more than the head sees of it.

    The head's 3x3 filter looks one cell into the void and its batch norm averages over it; here the filter is
    cut to its centre and the norm runs on kept statistics, and then nothing at all moves. On the labels' own
    grid, for a resize to a finer one mixes neighbours too.
    """
    target = a_target(hw=(H, W))
    found = []
    for spoil in (False, True):
        loss = lfd(options)
        loss.head[1].eval()
        conv = loss.head[0]
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            centre = conv.weight[:, :, 1, 1].clone()
            conv.weight.zero_()
            conv.weight[:, :, 1, 1] = centre
        s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
        if spoil:
            s, t = spoilt(s, target == IGNORE), spoilt(t, target == IGNORE)
        found.append({**loss(s, t, target, 1.0), "w": loss.class_mask.weight})
    for part, value in found[0].items():
        assert torch.equal(value, found[1][part]), part


@each_case
def test_void_pixels_never_move_the_feature_term_nor_the_class_weights(options: dict[str, Any]) -> None:
    """With the whole head: `fea` and the masks do not pass through it."""
    target, (plain, other) = a_target(), (lfd(options), lfd(options))
    void = torch.from_numpy(cells_of(numpy(target), (H, W)) == IGNORE)
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    assert torch.equal(plain(s, t, target, 1.0)["fea"], other(spoilt(s, void), spoilt(t, void), target, 1.0)["fea"])
    assert torch.equal(plain.class_mask.weight, other.class_mask.weight)


def test_void_pixels_move_kd_only_where_they_are_asked_for() -> None:
    target = a_target()
    void = torch.from_numpy(cells_of(numpy(target), (H, W)) == IGNORE)
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    for counted in (False, True):
        loss = KD(STUDENT, TEACHER, K, KDOptions(void=counted))
        before, after = loss(s, t, target, 1.0)["kd"], loss(spoilt(s, void), spoilt(t, void), target, 1.0)["kd"]
        assert torch.equal(before, after) != counted


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((8, 8), (9, 9)), ((9, 9), (8, 8)), ((4, 4), (9, 9))])
@pytest.mark.parametrize("student_channels", [128, 256, 512])
@pytest.mark.parametrize("teacher_channels", [128, 256, 512])
def test_any_channels_and_grids_fit_together(
    student_grid: tuple[int, int], teacher_grid: tuple[int, int], student_channels: int, teacher_channels: int
) -> None:
    """The grids of pictures of 64 and 65 pixels at stride 8, and of 64 at stride 16."""
    student, teacher = shapes(student_channels, student_grid), shapes(teacher_channels, teacher_grid)
    loss = lfd({}, student, teacher)
    assert loss.adapter.weight.shape == (teacher_channels, student_channels, 1, 1)
    check_against_reference(loss, outputs(student, 1), outputs(teacher, 2), a_target(hw=(64, 64)), 1.0)


@each_case
def test_without_labels_what_needs_none_still_trains(options: dict[str, Any]) -> None:
    """METHOD (e): the target is unknown everywhere; `fea` and `kl` train the student, cross entropy is silent."""
    loss, s = lfd({**options, "kl_start": 0.0}), outputs(STUDENT, 1)
    parts = loss(s, outputs(TEACHER, 2), a_target("unlabelled"), 1.0)
    assert not parts["aux"].detach().any()
    for part in ("fea", "kl"):
        s.taps["deep"].grad = None
        parts[part].backward(retain_graph=True)
        assert float(parts[part].detach()) > 0 and not silent([s.taps["deep"]]), part
    s.taps["deep"].grad = None
    parts["aux"].backward()
    assert silent([s.taps["deep"]])
    assert bool((loss.class_mask.weight != 1).any()) <= (loss.options.class_mask in ("kl", "presence"))


def test_film_in_a_batch_trains_beside_labelled_pictures() -> None:
    loss, s = lfd({"kl_start": 0.0}), outputs(STUDENT, 1)
    parts = loss(s, outputs(TEACHER, 2), a_target("film"), 1.0)
    for part in ("fea", "kl"):
        s.taps["deep"].grad = None
        parts[part].backward(retain_graph=True)
        grad = s.taps["deep"].grad
        assert grad is not None and grad[0].any(dim=0).all(), f"{part} in every cell of the film"
        known = torch.from_numpy(known_of(numpy(a_target("film")), (H, W)))[1]
        assert part == "kl" or torch.equal(grad[1].any(dim=0), known)


@pytest.mark.parametrize("kind", ["dice", "kl", "presence", "gate"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_students_own_auxiliary_head_under_the_class_mask(kind: str, align_corners: bool) -> None:
    loss = lfd({"class_mask": kind, "apply_to": "student_aux", "class_momentum": 0.1})
    target, logits = a_target(), outputs(STUDENT, 5).logits
    loss(outputs(STUDENT, 1), outputs(TEACHER, 2), target, 1.0)
    w = numpy(loss.class_mask.weight)
    assert kind == "presence" or w.std() > 0.01
    found = loss.student_aux(logits, target, align_corners)
    assert float(found.detach()) == pytest.approx(
        by_class(kind, w, numpy(logits), numpy(target), align_corners), rel=1e-4
    )
    found.backward()  # after the weights have moved on
    assert not silent([logits])


@pytest.mark.parametrize("kind", CLASS)
def test_a_log_follows_the_class_weights_where_there_are_any(kind: str) -> None:
    loss = lfd({"class_mask": kind, "class_momentum": 0.0})
    loss(outputs(STUDENT, 1), outputs(TEACHER, 2), a_target(), 1.0)
    found = loss.statistics()
    assert set(found) == (set() if kind == "uniform" else {"class_weight"})
    assert all(torch.equal(value, loss.class_mask.weight) for value in found.values())
    assert not KD(STUDENT, TEACHER, K).statistics()


@pytest.mark.parametrize("kind", CLASS)
def test_evaluation_moves_no_class_weight_and_a_resumed_run_goes_on_with_them(kind: str) -> None:
    loss = lfd({"class_mask": kind, "class_momentum": 0.1})
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    loss.eval()(s, t, a_target("one class"), 1.0)
    assert (loss.class_mask.weight == 1).all()
    loss.train()(s, t, a_target(), 1.0)
    resumed = lfd({"class_mask": kind, "class_momentum": 0.1})
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(resumed.class_mask.weight, loss.class_mask.weight)


@each_case
def test_two_backward_passes_may_follow_two_forward_passes(options: dict[str, Any]) -> None:
    """The class weights move in place; what an earlier step needs of them is its own."""
    loss, s = lfd(options), outputs(STUDENT, 1)
    losses = [sum(loss(s, outputs(TEACHER, i), a_target(), 1.0).values(), torch.zeros(())) for i in (2, 3)]
    for value in losses:
        value.backward()


# Two processes, as two threads


class TwoRanks:
    """Stands in for torch.distributed in `lfd.distributed`: each of two threads is a rank."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.slots: list[Tensor] = [torch.zeros(())] * 2
        self.here = threading.local()

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return hasattr(self.here, "rank")

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, value: Tensor) -> None:
        self.slots[self.here.rank] = value.clone()
        self.barrier.wait()
        total = self.slots[0] + self.slots[1]
        self.barrier.wait()
        value.copy_(total)


def step(losses: nn.ModuleList, balance: Balance, s: Outputs, t: Outputs, target: Tensor) -> list[Tensor]:
    """One balanced step with a task loss; the gradients by the student's logits and feature, then the parameters'."""
    terms = {"task": cross_entropy(s.logits, target, torch.tensor([0.5, 1, 2, 1.5, 0.7]))}
    for loss in losses:
        terms.update(loss(s, t, target, 1.0))
    total = sum((balance(n, x) if n in balance.terms else x for n, x in terms.items()), torch.zeros(()))
    total.backward()
    return gradients([s.logits, s.taps["deep"], *losses.parameters()])


def half(of: Outputs, rank: int) -> Outputs:
    def cut(x: Tensor) -> Tensor:
        return x.detach()[rank : rank + 1].clone().requires_grad_()

    return Outputs(cut(of.logits), {"deep": cut(of.taps["deep"])}, None)


@pytest.mark.parametrize("balance", ["detach", "ema", "none"])
@pytest.mark.parametrize("kind", ["uneven", "film", "void"])
@pytest.mark.parametrize(
    "options", [{}, *({"spatial_mask": a, "class_mask": b} for a, b in zip(SPATIAL, CLASS, strict=False))], ids=name_of
)
def test_the_average_over_two_ranks_is_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: str, balance: str
) -> None:
    """However unevenly void is spread: the mean of the ranks' gradients, every class weight, every average."""
    target = a_target("void" if kind == "void" else "film" if kind == "film" else "mixed")
    if kind == "uneven":
        target[0, 8:] = IGNORE
        target[0, 8:10] = 1
        target[1, :4] = 3
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    whole = nn.ModuleList([KD(STUDENT, TEACHER, K), lfd({**options, "class_momentum": 0.2})])
    lfd_of(whole).head[1].eval()  # its batch statistics are `lfd.sync_bn`'s matter
    by_size = Balance(balance, ("task", "kd", "fea"))
    losses, balances = ([copy.deepcopy(x) for _ in range(2)] for x in (whole, by_size))
    expected = step(whole, by_size, s, t, target)

    ranks = TwoRanks()
    monkeypatch.setattr("lfd.distributed.dist", ranks)

    def run(rank: int) -> list[Tensor]:
        ranks.here.rank = rank
        return step(losses[rank], balances[rank], half(s, rank), half(t, rank), target[rank : rank + 1])

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    joined = [torch.cat([a, b]) / 2 for a, b in zip(first[:2], second[:2], strict=True)]
    averaged = [(a + b) / 2 for a, b in zip(first[2:], second[2:], strict=True)]
    for one, other in zip([*joined, *averaged], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for rank in range(2):
        torch.testing.assert_close(lfd_of(losses[rank]).class_mask.weight, lfd_of(whole).class_mask.weight)
        torch.testing.assert_close(balances[rank].state_dict(), by_size.state_dict())


def lfd_of(losses: nn.ModuleList) -> LFD:
    loss = losses[1]
    assert isinstance(loss, LFD)
    return loss


# Methods and options


@pytest.mark.parametrize("name", METHODS)
def test_every_method_weighs_exactly_the_parts_of_its_losses(name: str) -> None:
    method = METHODS[name]
    parts = {part for loss in method.losses for part in LOSSES[loss].parts}
    assert set(method.weights) == {"task"} | parts
    assert set(method.balanced) <= set(method.weights)


def test_lfds_weights_and_balance_are_the_trainers() -> None:
    """KNOWN in METHOD.md."""
    assert METHODS["lfd"].weights == {"task": 1, "kd": 1, "fea": 1, "aux": 0.1, "kl": 1}
    assert METHODS["lfd"].balanced == ("task", "kd", "fea")
    o = LFDOptions()
    assert (o.head_width, o.kl_temperature, o.mask_base, o.mask_clip) == (128, 1, 0.5, 5)
    assert (o.class_bounds, o.class_momentum) == ((0.5, 2), 0.99)


def test_options_come_typed_out_of_a_recipe() -> None:
    found = plan("lfd", options={"lfd": {"class_bounds": [0.25, 4], "kl_temperature": 2, "head_width": 32}}).losses
    assert found == {"kd": KDOptions(), "lfd": LFDOptions(class_bounds=(0.25, 4.0), kl_temperature=2.0, head_width=32)}
    assert plan("none") == Plan({}, {"task": 1.0}, (), "detach")


@pytest.mark.parametrize(
    ("method", "loss", "options", "says"),
    [
        (
            "lfd",
            "lfd",
            {"spatial_mask": "disagree"},
            "unknown value of loss.lfd.spatial_mask 'disagree'. Did you mean 'disagreement",
        ),
        ("lfd", "lfd", {"class_mask": "dise"}, "unknown value of loss.lfd.class_mask 'dise'. Did you mean 'dice'?"),
        (
            "lfd",
            "lfd",
            {"apply_to": "all"},
            "unknown value of loss.lfd.apply_to 'all'. Known: both, shared_head, student_aux",
        ),
        (
            "lfd",
            "lfd",
            {"shared_head": "student"},
            "unknown value of loss.lfd.shared_head 'student'. Known: both, teacher",
        ),
        (
            "lfd",
            "lfd",
            {"aux_resolution": "half"},
            "unknown value of loss.lfd.aux_resolution 'half'. Known: feature, full",
        ),
        ("lfd", "lfd", {"aux_bn": "join"}, "unknown value of loss.lfd.aux_bn 'join'. Did you mean 'joint'?"),
        ("lfd", "lfd", {"mask_base": 1.5}, "loss.lfd.mask_base = 1.5; expected 0 to 1"),
        ("lfd", "lfd", {"mask_base": math.nan}, "loss.lfd.mask_base = nan; expected 0 to 1"),
        ("lfd", "lfd", {"mask_clip": 0.5}, "loss.lfd.mask_clip = 0.5; expected 1 to"),
        ("lfd", "lfd", {"class_bounds": [1.5, 2]}, "loss.lfd.class_bounds[0] = 1.5; expected 0 to 1"),
        ("lfd", "lfd", {"class_bounds": [0.5, 0.9]}, "loss.lfd.class_bounds[1] = 0.9; expected 1 to"),
        ("lfd", "lfd", {"class_bounds": [0.5]}, "loss.lfd.class_bounds = [0.5]; expected a list of 2 numbers"),
        ("lfd", "lfd", {"class_momentum": 1}, "loss.lfd.class_momentum = 1.0; expected 0 to 0.999999"),
        ("lfd", "lfd", {"head_width": 0}, "loss.lfd.head_width = 0; expected 1 to 4096"),
        ("lfd", "lfd", {"head_width": 3.5}, "loss.lfd.head_width = 3.5; expected int"),
        ("lfd", "lfd", {"kl_start": -0.1}, "loss.lfd.kl_start = -0.1; expected 0 to 1"),
        ("lfd", "lfd", {"kl_temperature": 0}, "loss.lfd.kl_temperature = 0.0; expected 0.01 to 1000"),
        ("lfd", "lfd", {"mask_bsae": 1}, "unknown key in [loss.lfd] 'mask_bsae'. Did you mean 'mask_base'?"),
        *(
            (
                "lfd",
                "lfd",
                {"class_mask": "uniform", "apply_to": where},
                f"loss.lfd.apply_to = '{where}' has no effect with class_mask 'uniform'",
            )
            for where in ("student_aux", "both")
        ),
        (
            "lfd",
            "lfd",
            {"spatial_mask": "uniform", "mask_base": 0.2},
            "mask_base = 0.2 has no effect with spatial_mask",
        ),
        ("lfd", "lfd", {"spatial_mask": "uniform", "mask_clip": 9}, "mask_clip = 9.0 has no effect with spatial_mask"),
        ("lfd", "lfd", {"class_mask": "presence", "class_momentum": 0}, "no effect with class_mask 'presence'"),
        ("lfd", "lfd", {"class_mask": "uniform", "class_bounds": [0, 9]}, "no effect with class_mask 'uniform'"),
        ("kd", "kd", {"temperature": 0}, "loss.kd.temperature = 0.0; expected 0.01 to 1000"),
        ("kd", "kd", {"void": 1}, "loss.kd.void = 1; expected bool"),
        ("kd", "lfd", {}, "[loss.lfd] has no effect: the losses of method 'kd' are kd. Fix: leave it away"),
        ("none", "kd", {}, "[loss.kd] has no effect: the losses of method 'none' are none. Fix: leave it away"),
        ("lfd", "ldf", {}, "unknown section in [loss] 'ldf'. Did you mean 'lfd'?"),
    ],
    ids=str,
)
def test_a_bad_option_is_one_line(method: str, loss: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(method, options={loss: options})
    assert says in str(caught.value) and "\n" not in str(caught.value)
