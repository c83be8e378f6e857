"""Losses against other people's values, closed forms, and the promises of their docstrings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lfd.losses import LOSSES, METHODS
from lfd.losses.common import IGNORE, DistillLoss, cross_entropy, kl_per_pixel, labelled, masked_mean, to_grid
from lfd.losses.kd import KD
from lfd.losses.lfd import LFD, dice_error, disagreement_mask
from lfd.taps import Outputs, TapInfo

B, K, H, W = 2, 5, 6, 8
STUDENT = {"logits": TapInfo(K, (H, W)), "deep": TapInfo(7, (H, W))}
TEACHER = {"logits": TapInfo(K, (H, W)), "deep": TapInfo(12, (H, W))}


def outputs(shapes: dict[str, TapInfo], seed: int, scale: float = 1.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def make(info: TapInfo) -> Tensor:
        return (scale * torch.randn(B, info.channels, *info.grid_hw, generator=generator)).requires_grad_()

    return Outputs(make(shapes["logits"]), {"deep": make(shapes["deep"])}, None)


def a_target(kind: str = "mixed") -> Tensor:
    if kind == "void":
        return torch.full((B, 4 * H, 4 * W), IGNORE)
    if kind == "one class":
        return torch.full((B, 4 * H, 4 * W), 2)
    target = torch.randint(0, K, (B, 4 * H, 4 * W), generator=torch.Generator().manual_seed(3))
    target[:, :7] = IGNORE
    return target


def build(name: str, student: dict[str, TapInfo] = STUDENT, teacher: dict[str, TapInfo] = TEACHER) -> DistillLoss:
    torch.manual_seed(0)
    return LOSSES[name](student, teacher, K)


@pytest.mark.shared
@pytest.mark.parametrize(("temperature", "key"), [(1.0, "loss_kd_T1"), (4.0, "loss_kd_T4")])
def test_kd_is_the_cirkd_repositorys(real: Path, temperature: float, key: str) -> None:
    refs = np.load(real / "refs" / "losses.npz")
    s, t = (torch.from_numpy(refs[f"{who}_logits"]) for who in ("student", "teacher"))
    target = torch.from_numpy(refs["target"]).long()
    target[target < 0] = IGNORE
    loss = KD({}, {}, s.shape[1], temperature, void=True)
    found = loss(Outputs(s, {}, None), Outputs(t, {}, None), target, 1.0)["kd"]
    assert float(found) == pytest.approx(float(refs[key]), rel=1e-5)


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


def test_cross_entropy_without_a_label_is_zero_and_trains_nothing() -> None:
    logits = torch.randn(B, K, H, W, requires_grad=True)
    loss = cross_entropy(logits, a_target("void"))
    loss.backward()
    assert not loss.detach().any() and logits.grad is not None and not logits.grad.any()


def test_mask_is_the_formula_of_a_two_cell_map() -> None:
    kl, known = torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1, 2)
    assert disagreement_mask(kl, known, base=0.5).flatten().tolist() == pytest.approx([0.75, 1.25])
    spike = torch.zeros(1, 1, 20)
    spike[..., 0] = 1.0  # 20 times the mean: clipped to 5
    assert disagreement_mask(spike, torch.ones(1, 1, 20))[0, 0, 0] == pytest.approx(0.5 + 0.5 * 5)


def test_mask_is_flat_where_the_networks_agree() -> None:
    assert (disagreement_mask(torch.zeros(1, 3, 3), torch.ones(1, 3, 3)) == 0.5).all()


def test_dice_error_in_closed_form() -> None:
    """Two cells, truth (0, 1), p(class 0) = 0.9 and 0.4: Dice_0 = 1.8 / 2.3, Dice_1 = 1.2 / 1.7."""
    p = torch.tensor([0.9, 0.4])
    logits = torch.stack([p.log(), (1 - p).log(), torch.full((2,), -50.0)])[None, :, None, :]
    error, present = dice_error(logits, torch.tensor([[[0, 1]]]))
    assert error[:2].tolist() == pytest.approx([1 - 1.8 / 2.3, 1 - 1.2 / 1.7], rel=1e-5)
    assert present.tolist() == [True, True, False]


def test_class_weights_move_towards_the_error_and_leave_absent_classes() -> None:
    loss = build("lfd")
    assert isinstance(loss, LFD)
    logits, target = torch.randn(B, K, H, W), a_target()
    target[target == 4] = IGNORE
    error, present = dice_error(logits, target)
    loss.update_class_weight(logits, target)
    wanted = (error / error[:4].mean()).clamp(0.5, 2)
    assert torch.allclose(loss.class_weight[:4], 0.99 + 0.01 * wanted[:4])
    assert not present[4] and loss.class_weight[4] == 1


def test_feature_term_is_the_masked_mean_square() -> None:
    loss = build("lfd")
    assert isinstance(loss, LFD)
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    target = a_target("one class")
    kl = kl_per_pixel(t.logits, s.logits)
    mask = 0.5 + 0.5 * (kl / kl.mean()).clamp(0, 5)
    distance = (loss.adapter(s.taps["deep"]) - t.taps["deep"]).square().mean(1)
    expected = (mask * distance).sum() / mask.sum()
    found = loss(s, t, target, 1.0)["fea"].detach()
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_kl_term_waits_until_the_head_has_learnt() -> None:
    loss = build("lfd")
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    assert "kl" not in loss(s, t, a_target(), 0.0)
    assert "kl" in loss(s, t, a_target(), 1000 / 40_000)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_student_adapter_and_head_but_never_the_teacher(name: str) -> None:
    loss = build(name)
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    sum(loss(s, t, a_target(), 1.0).values(), torch.zeros(())).backward()
    assert s.logits.grad is not None or s.taps["deep"].grad is not None
    if name == "kd":
        assert s.logits.grad is not None and s.logits.grad.any()
        # The loss itself does not cut the teacher off: the distiller runs it without gradient.
    else:
        assert t.logits.grad is None or not t.logits.grad.any()
        assert t.taps["deep"].grad is None
        assert s.logits.grad is None, "masks carry no gradient"
    for feature in loss.needs:
        grad = s.taps[feature].grad
        assert grad is not None and grad.any()
    for parameter_name, parameter in loss.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("kind", ["mixed", "void", "one class"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_on_every_kind_of_batch(name: str, scale: float, kind: str) -> None:
    loss = build(name)
    s, t = outputs(STUDENT, 1, scale), outputs(TEACHER, 2, scale)
    parts = loss(s, t, a_target(kind), 1.0)
    assert set(parts) == set(loss.parts)
    sum(parts.values(), torch.zeros(())).backward()
    values = [*parts.values(), *(p.grad for p in loss.parameters() if p.grad is not None)]
    assert all(torch.isfinite(v).all() for v in values)
    for feature in (s.logits, *s.taps.values()):
        assert feature.grad is None or torch.isfinite(feature.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_void_pixels_are_inert(name: str) -> None:
    """What stands in cells that are void, in either network, changes no pixel-wise term."""
    loss = build(name).eval()
    target = torch.randint(0, K, (B, H, W), generator=torch.Generator().manual_seed(3))
    target[:, 2:4] = IGNORE
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    parts = loss(s, t, target, 1.0)
    spoilt = []
    for o in (s, t):
        logits, deep = o.logits.detach().clone(), o.taps["deep"].detach().clone()
        logits[:, :, 2:4] += 5 * torch.randn(B, K, 2, W)
        deep[:, :, 2:4] -= 3
        spoilt.append(Outputs(logits, {"deep": deep}, None))
    again = loss(spoilt[0], spoilt[1], target, 1.0)
    # The shared head's 3x3 filter sees one row into the void, so its terms may move a little: not these.
    for part in {"kd", "fea"} & set(parts):
        assert float(again[part].detach()) == pytest.approx(float(parts[part].detach()), rel=1e-6)


@pytest.mark.parametrize("grid", [(6, 8), (3, 4), (12, 16), (7, 9)])
@pytest.mark.parametrize("channels", [7, 12, 64])
@pytest.mark.parametrize("name", LOSSES)
def test_any_channels_and_grids_fit_together(name: str, channels: int, grid: tuple[int, int]) -> None:
    student = {"logits": TapInfo(K, grid), "deep": TapInfo(channels, grid)}
    parts = build(name, student)(outputs(student, 1), outputs(TEACHER, 2), a_target(), 1.0)
    assert all(torch.isfinite(v) for v in parts.values())


def test_an_unlabelled_picture_counts_everywhere_and_a_void_cell_nowhere() -> None:
    target = torch.full((2, 4, 4), IGNORE)
    target[1, :2] = 0
    assert labelled(target, (2, 2)).tolist() == [[[1, 1], [1, 1]], [[1, 1], [0, 0]]]


def test_masked_mean_of_nothing_is_zero() -> None:
    assert float(masked_mean(torch.ones(3), torch.zeros(3))) == 0


def test_to_grid_leaves_what_fits() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert to_grid(x, (3, 4)) is x and to_grid(x, (6, 8)).shape == (1, 2, 6, 8)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_weighs_exactly_the_parts_of_its_losses(name: str) -> None:
    method = METHODS[name]
    parts = {part for loss in method.losses for part in LOSSES[loss].parts}  # type: ignore[attr-defined]
    assert set(method.weights) == {"task"} | parts
    assert set(method.balanced) <= set(method.weights)
