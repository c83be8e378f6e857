from __future__ import annotations

import pytest
import torch

from lfd.distiller import Distiller, balance
from lfd.errors import UsageError
from lfd.losses import METHODS
from lfd.losses.common import IGNORE
from lfd.models import create_model
from lfd.normalize import Normalize, Predictor
from lfd.spec import Preprocess

K, SIZE = 4, Preprocess((64, 64))


def make(
    method: str, teacher: str = "deeplabv3_resnet18_os16", student: str = "lraspp_mobilenet_v3_small", **weights: float
) -> Distiller:
    torch.manual_seed(0)
    pupil, _ = create_model(student, K)
    master = create_model(teacher, K)[0] if method != "none" else None
    return Distiller(pupil, SIZE, K, method, weights, None if master is None else (master, SIZE, None))


def batch(void: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, K, (2, 64, 64), generator=generator)
    return image, torch.full_like(target, IGNORE) if void else target


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("student", ["lraspp_mobilenet_v3_small", "deeplabv3_resnet18_os16"])
def test_a_step_trains_the_student_and_its_helpers_and_leaves_the_teacher(method: str, student: str) -> None:
    distiller = make(method, student=student).train()
    teacher = distiller._teacher[0].model if distiller._teacher else None
    before = {k: v.clone() for k, v in teacher.state_dict().items()} if teacher else {}
    result = distiller(*batch(), progress=1.0)
    result.total.backward()
    assert set(result.parts) == set(METHODS[method].weights)
    silent = [n for n, p in distiller.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not silent
    if teacher:
        assert not teacher.training and all(p.grad is None for p in teacher.parameters())
        assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
        assert not any("teacher" in name for name, _ in distiller.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_without_labels_the_rest_still_trains(method: str) -> None:
    distiller = make(method).train()
    result = distiller(*batch(void=True), progress=1.0)
    result.total.backward()
    assert torch.isfinite(result.total) and float(result.parts["task"]) == 0
    grads = [p.grad for p in distiller.student.parameters() if p.grad is not None]
    assert any(g.any() for g in grads) == (method != "none")


def test_training_scaffolding_stays_out_of_the_student() -> None:
    distiller = make("lfd")
    fresh, _ = create_model("lraspp_mobilenet_v3_small", K)
    assert set(distiller.student.state_dict()) == set(fresh.state_dict())
    assert any(name.startswith("losses.") for name in distiller.state_dict())


@pytest.mark.parametrize("student_amp", [None, torch.bfloat16])
def test_teacher_and_student_may_differ_in_precision(student_amp: torch.dtype | None) -> None:
    pupil, _ = create_model("lraspp_mobilenet_v3_small", K)
    master, _ = create_model("deeplabv3_resnet18_os16", K)
    distiller = Distiller(pupil, SIZE, K, "lfd", {}, (master, SIZE, torch.bfloat16)).train()
    with torch.autocast("cpu", student_amp, enabled=student_amp is not None):
        result = distiller(*batch(), progress=1.0)
    result.total.backward()
    assert result.total.dtype == torch.float32 and all(v.dtype == torch.float32 for v in result.parts.values())


def test_weights_scale_their_terms_outside_the_balance() -> None:
    image, target = batch()
    one = make("lfd").eval()
    two = make("lfd", task=3.0).eval()
    difference = two(image, target).total - one(image, target).total
    assert float(difference.detach()) == pytest.approx(2.0, rel=1e-4)  # the balanced term is 1


def test_balance_is_one_with_the_gradient_of_the_logarithm() -> None:
    x = torch.tensor(4.0, requires_grad=True)
    y = balance(x)
    y.backward()
    assert float(y.detach()) == 1 and float(x.grad) == 0.25
    zero = torch.tensor(0.0, requires_grad=True)
    balance(zero).backward()
    assert float(zero.grad) == 1


@pytest.mark.parametrize(
    ("method", "weights", "says"),
    [("ldf", {}, "Did you mean 'lfd'"), ("kd", {"fea": 1.0}, "loss weight of method 'kd' 'fea'")],
)
def test_wrong_names_are_usage_errors(method: str, weights: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(method, **weights) if method == "kd" else Distiller(
            create_model("lraspp_mobilenet_v3_small", K)[0], SIZE, K, method
        )


def test_a_method_without_its_teacher_is_refused() -> None:
    with pytest.raises(UsageError, match="--teacher"):
        Distiller(create_model("lraspp_mobilenet_v3_small", K)[0], SIZE, K, "kd")


def test_each_network_gets_its_own_input_convention() -> None:
    image, _ = batch()
    rgb = Normalize(Preprocess((64, 64), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))(image)
    assert rgb[0, 0, 5, 6] == pytest.approx((float(image[0, 2, 5, 6]) / 255 - 0.1) / 0.5, abs=1e-5)
    caffe = Preprocess((64, 64), (104 / 255, 117 / 255, 123 / 255), (1 / 255,) * 3, color="BGR")
    assert Normalize(caffe)(image)[0, 0, 5, 6] == pytest.approx(float(image[0, 0, 5, 6]) - 104, abs=1e-3)


def test_the_predictor_leaves_the_mode_as_it_was() -> None:
    model, _ = create_model("lraspp_mobilenet_v3_small", K)
    frame = batch()[0][0].permute(1, 2, 0).numpy()
    classes = Predictor(model.train(), SIZE, torch.device("cpu"))(frame)
    assert model.training and classes.shape == (64, 64) and classes.max() < K
