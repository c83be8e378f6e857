"""SKD: the pair-wise part against the CIRKD repository's value and numpy, and the promises of the critic."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lfd.errors import UsageError
from lfd.losses.common import IGNORE, to_grid
from lfd.losses.skd import SKD, Critic, SKDOptions, gradient_penalty
from lfd.methods import plan
from tests.lfd.losses.cases import Array, Case, cases, evaluate, golden, make

CASES: list[dict[str, Any]] = [
    {},
    {"tap": "stage2"},
    {"patch": (1, 1)},
    {"patch": (3, 100)},
    {"void": True},
    {"holistic": "hinge"},
    {"holistic": "wgan-gp"},
]
both_kinds = pytest.mark.parametrize("kind", ["hinge", "wgan-gp"])


def build(case: Case, **options: Any) -> SKD:
    torch.manual_seed(0)
    return SKD(*case.shapes, case.classes, SKDOptions(**options))


# The pair-wise part


def nodes(feature: Array, count: Array, grid: tuple[int, int], patch: tuple[int, int]) -> list[Array]:
    """The largest feature of each patch of one picture, channel by channel, over the cells that count."""
    maps, counts = feature.reshape(-1, *grid), count.reshape(grid)
    found = []
    for y in range(0, grid[0], patch[0]):
        for x in range(0, grid[1], patch[1]):
            inside = counts[y : y + patch[0], x : x + patch[1]]
            if inside.any():
                found.append(maps[:, y : y + patch[0], x : x + patch[1]][:, inside].max(1))
    return found


def reference(case: Case, tap: str, patch: tuple[int, int], void: bool) -> float:
    student, teacher, y = case.arrays(tap)
    shape = case.student.taps[tap].shape
    squares = []
    for s, t, count in zip(student, teacher, np.full(y.shape, True) if void else y != IGNORE, strict=True):
        of_s, of_t = (nodes(x, count, (shape[2], shape[3]), patch) for x in (s, t))
        for i, j in np.ndindex(len(of_s), len(of_s)):
            a_s, a_t = (f[i] @ f[j] / np.sqrt((f[i] @ f[i]) * (f[j] @ f[j])) for f in (of_s, of_t))
            squares.append((a_s - a_t) ** 2)
    return float(np.mean(squares)) if squares else 0.0


@pytest.mark.shared
def test_the_pair_wise_part_is_the_cirkd_repositorys(real: Path) -> None:
    case, values = golden(real)
    assert evaluate(build(case, void=True), case) == pytest.approx({"skd_pair": values["loss_skd_pairwise"]}, rel=1e-5)


@given(cases(), st.sampled_from([(1, 1), (2, 2), (1, 3), (9, 9)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_pair_wise_part_is_the_equation(case: Case, patch: tuple[int, int], void: bool) -> None:
    found = evaluate(build(case, patch=patch, void=void), case)["skd_pair"]
    assert found == pytest.approx(reference(case, "deep", patch, void), rel=1e-3, abs=1e-5)


def test_two_nodes_in_closed_form() -> None:
    """Right angles against the same direction: similarity 0 against 1, in two of the four pairs."""
    case = make(0, batch=1, channels=(2, 1), grid=(1, 2), teacher_grid=(1, 2), void=0)
    case.student.taps["deep"].copy_(torch.tensor([[2.0, 0], [0, 3]]).view(1, 2, 1, 2))
    case.teacher.taps["deep"].fill_(4.0)
    assert evaluate(build(case, patch=(1, 1)), case)["skd_pair"] == pytest.approx(0.5)


def test_features_of_zero_get_no_gradient() -> None:
    """`F.normalize` would give them one of 1e12."""
    case = make(1)
    feature = torch.zeros_like(case.student.taps["deep"]).requires_grad_()
    case.student.taps["deep"] = feature
    build(case)(case.student, case.teacher, case.target, 1.0)["skd_pair"].backward()
    assert feature.grad is not None and not feature.grad.any()


# The holistic part


def leaves(case: Case) -> Case:
    """The case with gradients of everything that either network gave."""
    for outputs in (case.student, case.teacher):
        for maps in (outputs.logits, *outputs.taps.values()):
            maps.requires_grad_()
    return case


def terms(loss: SKD, case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = loss(case.student, case.teacher, case.target, 1.0)
    return found


def test_without_it_there_is_no_critic() -> None:
    assert not list(build(make(0)).parameters())
    assert SKD.active(SKDOptions()) == ("skd_pair",)


@both_kinds
def test_each_part_trains_one_of_the_two(kind: str) -> None:
    case = leaves(make(2))
    loss = build(case, holistic=kind)
    terms(loss, case)["skd_holistic"].backward()
    assert case.student.logits.grad is not None and case.student.logits.grad.any()
    assert all(p.grad is None for p in loss.parameters())
    case.student.logits.grad = None
    terms(loss, case)["skd_critic"].backward()
    assert case.student.logits.grad is None and case.teacher.logits.grad is None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
    learnt = {
        name.split(".parametrizations")[0] for name, p in loss.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"critic.layers.1", "critic.layers.3", "critic.layers.5", "critic.layers.8"} <= learnt


@both_kinds
def test_the_parts_are_the_equations(kind: str) -> None:
    case = make(3, grid=(65, 66), teacher_grid=(65, 66), size=(65, 66), void=0.2)
    loss = build(case, holistic=kind).eval()  # no further power iteration: the critic stays one function
    assert loss.critic is not None
    known = (case.target != IGNORE)[:, None]
    with torch.no_grad():
        fake, real = (loss.critic(o.logits * known) for o in (case.student, case.teacher))
    torch.manual_seed(7)
    found = {name: value.detach() for name, value in terms(loss, case).items()}
    assert float(found["skd_holistic"]) == pytest.approx(-float(fake.mean()), rel=1e-5)
    if kind == "hinge":
        expected = (1 + fake).clamp_min(0).mean() + (1 - real).clamp_min(0).mean()
    else:
        torch.manual_seed(7)
        between = gradient_penalty(loss.critic, case.student.logits * known, case.teacher.logits * known).detach()
        expected = fake.mean() - real.mean() + 10 * between.mean()
    assert float(found["skd_critic"]) == pytest.approx(float(expected), rel=1e-5)


class Linear(nn.Module):
    """A critic whose gradient is known everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum((1, 2, 3))


@pytest.mark.parametrize("length", [0.0, 0.5, 3.0])
def test_the_penalty_is_the_closed_form_of_a_linear_critic(length: float) -> None:
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    critic = Linear(length * weight / weight.norm())
    penalty = gradient_penalty(critic, torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5))
    assert penalty.detach() == pytest.approx(torch.full((2,), (length - 1) ** 2), rel=1e-4)
    penalty.sum().backward()
    assert critic.weight.grad is not None and critic.weight.grad.isfinite().all()


def test_the_penalty_looks_between_the_two() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().sum((1, 2, 3))

    gradient_penalty(critic, torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2))  # type: ignore[arg-type]
    share = seen[0].flatten(1)
    assert (share == share[:, :1]).all()  # one point of the line for each picture
    assert 0 <= share.min() < 0.2 and 0.8 < share.max() <= 1


@both_kinds
def test_the_critic_learns_to_tell_them_apart(kind: str) -> None:
    """Its own part alone lowers its loss and parts the two networks' scores."""
    case = make(4, batch=4, void=0)
    case.teacher.logits.abs_()
    loss = build(case, holistic=kind)
    loss.critic = Critic(case.classes, 16)
    optimizer = torch.optim.SGD(loss.parameters(), 1e-3, momentum=0.9)
    found = []
    for _ in range(25):
        value = terms(loss, case)["skd_critic"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))
    assert np.mean(found[-3:]) < 0.9 * found[0]
    with torch.no_grad():
        fake, real = (loss.critic(to_grid(o.logits, (64, 64))) for o in (case.student, case.teacher))
    assert real.min() > fake.max()


def test_the_students_part_raises_its_score() -> None:
    case = leaves(make(5))
    loss = build(case, holistic="wgan-gp").eval()
    before = terms(loss, case)["skd_holistic"]
    before.backward()
    gradient = case.student.logits.grad
    assert gradient is not None
    with torch.no_grad():
        case.student.logits.sub_(1e-2 * gradient / gradient.norm())
    assert terms(loss, case)["skd_holistic"].detach() < before.detach()


def test_convolutions_have_spectral_norm_one() -> None:
    torch.manual_seed(0)
    critic = Critic(5)
    for _ in range(30):  # a power iteration each
        critic(torch.randn(1, 5, 64, 64))
    critic.eval()
    weights = [layer.weight.detach() for layer in critic.layers[:-1] if isinstance(layer, nn.Conv2d)]
    assert [float(torch.linalg.matrix_norm(w.flatten(1), 2)) for w in weights] == pytest.approx([1] * 4, rel=0.05)


def test_the_critic_scores_each_picture_by_itself() -> None:
    critic = Critic(5).eval()
    x = torch.randn(3, 5, 64, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([critic(x[[i]]) for i in range(3)])
        assert critic(x) == pytest.approx(alone, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (8, 8), (65, 97), (129, 200)], ids=str)
def test_any_grid_goes(grid: tuple[int, int]) -> None:
    case = leaves(make(6, grid=grid, teacher_grid=(7, 5), size=(max(8, grid[0]), max(8, grid[1]))))
    found = terms(build(case, holistic="hinge", patch=(8, 8)), case)
    torch.stack(list(found.values())).sum().backward()
    assert case.student.logits.grad is not None and case.student.logits.grad.isfinite().all()


@both_kinds
def test_void_logits_are_inert_for_both(kind: str) -> None:
    case = make(7)
    loss = build(case, holistic=kind)
    other = copy.deepcopy(case)
    for outputs, size in ((other.student, 100.0), (other.teacher, -50.0)):
        cells = nn.functional.interpolate(other.target[:, None].float(), outputs.logits.shape[2:], mode="nearest-exact")
        outputs.logits.add_(size * (cells == IGNORE))
    found = []
    for one in (case, other):
        torch.manual_seed(1)
        found.append({name: float(x.detach()) for name, x in terms(copy.deepcopy(loss), one).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@both_kinds
def test_a_picture_of_void_teaches_neither(kind: str) -> None:
    case = leaves(make(8))
    case.target.fill_(IGNORE)
    loss = build(case, holistic=kind)
    found = terms(loss, case)
    torch.stack(list(found.values())).sum().backward()
    assert not any(float(value.detach()) for value in found.values())
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": (0, 2)}, r"loss\.skd\.patch\[0\] = 0"),
        ({"patch": (2, 0)}, r"loss\.skd\.patch\[1\] = 0"),
        ({"holistic": "gan"}, r"loss\.skd\.holistic"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SKDOptions(**options)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"skd_holistic": 1.0}, {}, "skd_holistic = 1 has no effect"),
        ({"skd_pair": 0.0}, {"patch": (4, 4), "holistic": "hinge"}, r"loss\.skd\.patch"),
    ],
)
def test_what_has_no_effect_is_refused(weights: dict[str, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan("skd", weights, options={"skd": options})


def test_the_method_has_the_published_parts() -> None:
    assert dict(plan("skd").weights) == {"task": 1, "kd": 10, "skd_pair": 10}
    adversarial = plan("skd", options={"skd": {"holistic": "wgan-gp"}}).weights
    assert set(adversarial) == {"task", "kd", "skd_pair", "skd_holistic", "skd_critic"}


@pytest.mark.parametrize("zero", [("skd_holistic",), ("skd_critic",), ("skd_holistic", "skd_critic")])
def test_a_critic_without_its_counterpart_is_refused(zero: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"{zero[0]} = 0, but the options"):
        plan("skd", dict.fromkeys(zero, 0.0), options={"skd": {"holistic": "hinge"}})
