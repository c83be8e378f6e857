"""A step: who sees which picture, who is trained, and how the terms make up the total."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from lfd.distiller import AUX_WEIGHT, Distiller, StepOutput, Teacher
from lfd.errors import UsageError
from lfd.losses.common import IGNORE, UNKNOWN
from lfd.methods import METHODS, check_teacher, plan
from lfd.models import create_model
from lfd.normalize import Normalize, Predictor
from lfd.spec import Preprocess
from tests.lfd.test_losses import bilinear, entropy
from tests.lfd.test_masks import numpy

K, SIZE = 4, Preprocess((64, 64))
CAFFE = (104 / 255, 117 / 255, 123 / 255)


class Net(nn.Module):
    """A network of stride 8 that keeps what it was given."""

    taps: ClassVar[dict[str, str]] = {"deep": "classifier:input", "stage2": "stem.0", "stage4": "stem.1"}

    def __init__(self, channels: int = 6, aux: bool = False, align_corners: bool | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, stride=8, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Conv2d(channels, K, 1)
        self.aux_classifier = nn.Conv2d(channels, K, 1) if aux else None
        if align_corners is not None:
            self.align_corners = align_corners
        self.seen: list[Tensor] = []
        self.said: dict[str, Tensor] = {}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.seen.append(image.detach())
        feature = self.stem(image)
        self.said = {"out": self.classifier(feature)}
        if self.training and self.aux_classifier is not None:
            self.said["aux"] = self.aux_classifier(feature)
        return self.said


def make(
    method: str = "lfd",
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    sees: Preprocess = SIZE,
    student_input: Preprocess = SIZE,
    weights: Mapping[str, float] | None = None,
    balance: str = "",
    **options: Any,
) -> Distiller:
    torch.manual_seed(0)
    pupil, master = student or Net(), teacher or Net(channels=9)
    bound = None if method == "none" else Teacher(master, sees)
    chosen = plan(method, weights, balance, {"lfd": options} if options else None)
    return Distiller(pupil, student_input, K, chosen, bound)


def batch(void: bool = False, size_hw: tuple[int, int] = (64, 64)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, *size_hw), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, K, (2, *size_hw), generator=generator)
    target[:, :5] = IGNORE
    return image, torch.full_like(target, UNKNOWN) if void else target


def number(value: Tensor) -> float:
    return float(value.detach())


# Who is trained


NETWORKS = ("lraspp_mobilenet_v3_small", "deeplabv3_resnet18_os16")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("student", NETWORKS)
def test_a_step_trains_the_student_and_its_helpers_and_leaves_the_teacher(method: str, student: str) -> None:
    master = create_model("deeplabv3_resnet18_os16", K)[0]
    distiller = make(method, create_model(student, K)[0], master).train()
    before = {key: value.clone() for key, value in master.state_dict().items()}
    result = distiller(*batch(), progress=1.0)
    result.total.backward()
    assert set(result.parts) == set(distiller.plan.weights)
    assert not [n for n, p in distiller.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert all(p.grad is None for p in master.parameters())
    assert all(torch.equal(before[key], value) for key, value in master.state_dict().items())
    if method != "none":
        assert not master.training and not any(p.requires_grad for p in master.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_head": "teacher", "aux_bn": "joint"},
        {"apply_to": "both"},
        {"class_mask": "gate", "aux_bn": "joint"},
    ],
    ids=str,
)
def test_the_teacher_stays_as_it_is_through_training_and_optimiser(options: dict[str, Any]) -> None:
    master = Net(9)
    distiller = make("lfd", Net(aux=True), master, **options)
    before = {key: value.clone() for key, value in master.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        distiller.train()  # what the trainer calls reaches the student and the losses alone
        distiller(*batch()).total.backward()
        optimizer.step()
    assert not master.training and all(p.grad is None for p in master.parameters())
    assert all(torch.equal(before[key], value) for key, value in master.state_dict().items())
    owned = {id(p) for p in distiller.parameters()}
    assert not owned & {id(p) for p in master.parameters()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", ["", "ema", "none"])
def test_without_labels_the_rest_still_trains(method: str, balance: str) -> None:
    distiller = make(method, Net(aux=True), balance=balance if METHODS[method].balanced else "").train()
    result = distiller(*batch(void=True), progress=1.0)
    result.total.backward()
    assert torch.isfinite(result.total) and number(result.parts["task"]) == 0
    grads = [p.grad for p in distiller.student.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in grads)
    assert any(g.any() for g in grads) == (method not in ("none", "ifvd"))  # whose prototypes are of classes


@pytest.mark.parametrize("options", [{}, {"apply_to": "both"}, {"shared_head": "teacher"}], ids=str)
def test_training_scaffolding_stays_out_of_the_student(options: dict[str, Any]) -> None:
    distiller = make("lfd", Net(aux=True), balance="ema", **options)
    distiller(*batch()).total.backward()
    assert list(distiller.student.state_dict()) == list(Net(aux=True).state_dict())
    roots = {name.split(".")[0] for name in distiller.state_dict()}
    assert roots == {"student", "losses", "balance"}  # each once, and no teacher
    save(distiller.state_dict())  # refuses a tensor under two names
    real, _ = create_model(NETWORKS[0], K)
    assert list(make("lfd", real).student.state_dict()) == list(create_model(NETWORKS[0], K)[0].state_dict())


def test_a_resumed_run_goes_on_with_class_weights_and_averages() -> None:
    one, other = (make("lfd", balance="ema", class_momentum=0.5).train() for _ in range(2))
    one(*batch())
    other.load_state_dict(one.state_dict())
    assert number(one(*batch()).total) == pytest.approx(number(other(*batch()).total), rel=1e-6)
    assert other.balance.average.all() and (other.statistics()["class_weight"] != 1).any()


@pytest.mark.parametrize("student_amp", [None, torch.bfloat16])
@pytest.mark.parametrize("teacher_amp", [None, torch.bfloat16])
def test_teacher_and_student_may_differ_in_precision(
    student_amp: torch.dtype | None, teacher_amp: torch.dtype | None
) -> None:
    master = Net(9)
    distiller = Distiller(Net(aux=True), SIZE, K, plan("lfd"), Teacher(master, SIZE, teacher_amp)).train()
    with torch.autocast("cpu", student_amp, enabled=student_amp is not None):
        result = distiller(*batch(), progress=1.0)
    result.total.backward()
    assert master.said["out"].dtype == (teacher_amp or torch.float32)
    assert result.total.dtype == torch.float32 and all(v.dtype == torch.float32 for v in result.parts.values())


# Who sees which picture


def test_each_network_gets_its_own_mean_deviation_and_order() -> None:
    student, teacher, (image, target) = Net(), Net(9), batch()
    distiller = make(
        "lfd",
        student,
        teacher,
        Preprocess((64, 64), CAFFE, (1 / 255,) * 3, color="BGR"),
        Preprocess((64, 64), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
    )
    distiller(image, target)
    pixels = numpy(image).astype(float)
    caffe = pixels - np.array([104, 117, 123]).reshape(3, 1, 1)
    rgb = (pixels[:, ::-1] / 255 - np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / np.array([0.5, 0.6, 0.7])[
        :, None, None
    ]
    np.testing.assert_allclose(numpy(teacher.seen[-1]), caffe, atol=1e-3)
    np.testing.assert_allclose(numpy(student.seen[-1]), rgb, atol=1e-5)


@pytest.mark.parametrize(
    ("student_hw", "crop_hw", "teacher_hw", "sees_hw"),
    [
        ((64, 64), (64, 64), (65, 65), (65, 65)),
        ((64, 96), (64, 96), (128, 192), (128, 192)),
        ((64, 96), (32, 48), (128, 192), (64, 96)),  # a training crop, scaled as the picture is
        ((64, 96), (64, 96), (96, 96), (96, 96)),  # stretched one way only
        ((65, 65), (33, 33), (97, 97), (49, 49)),  # 33 * 97 / 65 = 49.2
    ],
)
def test_a_larger_teacher_sees_the_picture_at_its_own_scale(
    student_hw: tuple[int, int], crop_hw: tuple[int, int], teacher_hw: tuple[int, int], sees_hw: tuple[int, int]
) -> None:
    student, teacher, (image, target) = Net(), Net(9), batch(size_hw=crop_hw)
    sees = Preprocess(teacher_hw, (0.0,) * 3, (1 / 255,) * 3, color="BGR")
    result = make("lfd", student, teacher, sees, Preprocess(student_hw))(image, target)
    assert student.seen[-1].shape[2:] == crop_hw and teacher.seen[-1].shape[2:] == sees_hw
    np.testing.assert_allclose(numpy(teacher.seen[-1]), bilinear(numpy(image).astype(float), sees_hw), atol=1e-2)
    assert torch.isfinite(result.total)


def test_a_smaller_teacher_sees_the_picture_without_aliasing() -> None:
    """Half the size: a triangle filter of twice the width, whose four weights are 1, 3, 3, 1 eighths."""
    teacher, (image, target) = Net(9), batch()
    make("kd", Net(), teacher, Preprocess((32, 32), (0.0,) * 3, (1 / 255,) * 3, color="BGR"))(image, target)
    weights = np.array([1, 3, 3, 1]) / 8
    y, x = 5, 9  # away from the border
    patch = numpy(image).astype(float)[:, :, 2 * y - 1 : 2 * y + 3, 2 * x - 1 : 2 * x + 3]
    expected = np.einsum("bcij,i,j->bc", patch, weights, weights)
    assert teacher.seen[-1].shape[2:] == (32, 32)
    np.testing.assert_allclose(numpy(teacher.seen[-1])[:, :, y, x], expected, atol=1e-2)


def test_a_teacher_of_the_same_size_sees_the_pixels_themselves() -> None:
    teacher, (image, target) = Net(9), batch(size_hw=(40, 72))
    make("kd", Net(), teacher, Preprocess((64, 64), (0.0,) * 3, (1 / 255,) * 3, color="BGR"))(image, target)
    np.testing.assert_allclose(numpy(teacher.seen[-1]), numpy(image), atol=1e-3)


def test_the_predictor_leaves_the_mode_as_it_was() -> None:
    model, _ = create_model(NETWORKS[0], K)
    frame = batch()[0][0].permute(1, 2, 0).numpy()
    classes = Predictor(model.train(), SIZE, torch.device("cpu"))(frame)
    assert model.training and classes.shape == (64, 64) and classes.max() < K


def test_the_normalisation_in_closed_form() -> None:
    image, _ = batch()
    rgb = Normalize(Preprocess((64, 64), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))(image)
    assert rgb[0, 0, 5, 6] == pytest.approx((float(image[0, 2, 5, 6]) / 255 - 0.1) / 0.5, abs=1e-5)


# The task


@pytest.mark.parametrize("align_corners", [None, False, True])
@pytest.mark.parametrize("aux", [False, True])
def test_the_task_is_cross_entropy_with_the_students_own_resize(aux: bool, align_corners: bool | None) -> None:
    image, target = batch(size_hw=(65, 65))
    student = Net(aux=aux, align_corners=align_corners)
    found = make("none", student, student_input=Preprocess((65, 65))).train()(image, target).parts["task"]
    expected = 0.0
    for name, weight in (("out", 1.0), ("aux", 0.4)):
        if name in student.said:
            full = F.interpolate(student.said[name], (65, 65), mode="bilinear", align_corners=bool(align_corners))
            expected += weight * number(F.cross_entropy(full, target, ignore_index=IGNORE))
    assert aux == ("aux" in student.said) and number(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", ["dice", "presence", "gate"])
@pytest.mark.parametrize("apply_to", ["shared_head", "student_aux", "both"])
def test_a_class_mask_changes_the_task_only_through_the_students_auxiliary_head(
    apply_to: str, kind: str, align_corners: bool
) -> None:
    """task = CE(out) + 0.4 CE_w(aux), with the w of this very batch."""
    image, target = batch(size_hw=(65, 65))
    student, y = Net(aux=True, align_corners=align_corners), numpy(target)
    options = {"class_mask": kind, "apply_to": apply_to, "class_bounds": [0.1, 10]}
    if kind != "presence":  # which has no average
        options["class_momentum"] = 0.1
    y[y == 3] = 0  # dice weights of classes that are there differ from those of one that is not
    distiller = make("lfd", student, sees=Preprocess((65, 65)), student_input=Preprocess((65, 65)), **options).train()
    found = distiller(image, torch.from_numpy(y)).parts["task"]
    w = numpy(distiller.statistics()["class_weight"])
    assert w.std() > 0.01
    out, aux = numpy(student.said["out"]), numpy(student.said["aux"])
    flat = np.ones(K)
    used, gate = flat if apply_to == "shared_head" else w, flat
    if kind == "gate":
        used, gate = flat, used
    expected = entropy(out, y, flat, align_corners)
    expected += AUX_WEIGHT * entropy(aux * gate[:, None, None], y, used, align_corners)
    assert AUX_WEIGHT == 0.4 and number(found) == pytest.approx(expected, rel=1e-4)


def test_the_masked_auxiliary_term_leaves_the_primary_heads_gradient() -> None:
    grads = []
    for apply_to in ("shared_head", "student_aux"):
        student = Net(aux=True)
        torch.manual_seed(0)
        for p in student.parameters():
            nn.init.normal_(p, std=0.3)
        options = {"class_mask": "presence", "class_bounds": [0.1, 2], "apply_to": apply_to}
        make("lfd", student, weights={"kd": 0, "fea": 0, "kl": 0}, balance="none", **options)(*batch()).total.backward()
        assert student.aux_classifier is not None
        grads.append((student.classifier.weight.grad, student.aux_classifier.weight.grad))
    (primary, aux), (primary_masked, aux_masked) = grads
    assert primary is not None and torch.equal(primary, primary_masked)
    assert aux is not None and not torch.allclose(aux, aux_masked)


# The total


WEIGHTS = {"task": 2.0, "kd": 0.5, "fea": 3.0, "aux": 0.25, "kl": 1.5}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", ["", "detach", "ema", "none"])
def test_the_total_is_the_weighted_sum_with_weights_outside_the_balance(method: str, balance: str) -> None:
    balanced = METHODS[method].balanced
    weights = {part: WEIGHTS.get(part, 0.7) for part in plan(method).weights}
    distiller = make(method, Net(aux=True), weights=weights, balance=balance if balanced else "").train()
    first: dict[str, float] = {}
    for step in range(2):
        result: StepOutput = distiller(*batch())
        raw = {part: number(value) for part, value in result.parts.items()}
        first = first or raw
        average = {part: 0.99 * first[part] + 0.01 * raw[part] for part in raw} if step else raw
        size = {"none": dict.fromkeys(raw, 1.0), "ema": average}.get(balance, raw)
        expected = sum(weights[p] * (x / size[p] if p in balanced else x) for p, x in raw.items())
        assert number(result.total) == pytest.approx(expected, rel=1e-4)
        distiller.student.stem[0].bias.data.add_(1.5)  # another size of every term at the second step


def test_a_weight_scales_its_terms_gradient() -> None:
    """Inside the division it would have none."""
    grads = []
    for weight in (1.0, 3.0):
        weights = {"task": 0, "kd": 0, "aux": 0, "kl": 0, "fea": weight}
        distiller = make("lfd", weights=weights).train()
        distiller(*batch()).total.backward()
        grad = distiller.student.stem[0].weight.grad
        assert grad is not None and grad.any()
        grads.append(grad)
    torch.testing.assert_close(3 * grads[0], grads[1])


def test_kl_joins_the_total_when_it_begins() -> None:
    for start, progress, there in ((0.025, 0.02, False), (0.025, 0.025, True), (0.5, 0.4, False), (0.5, 1.0, True)):
        result = make("lfd", kl_start=start).train()(*batch(), progress=progress)
        assert ("kl" in result.parts) == there
        raw = {part: number(value) for part, value in result.parts.items()}
        assert number(result.total) == pytest.approx(3 + 0.1 * raw["aux"] + raw.get("kl", 0), rel=1e-4)


def test_a_step_of_equal_networks_is_finite() -> None:
    """Student and teacher agree to the bit: kd is 0, and a division by it is not made."""
    student, teacher = Net(9), Net(9)
    teacher.load_state_dict(student.state_dict())
    result = make("kd", student.eval(), teacher).eval()(*batch())
    assert number(result.parts["kd"]) == pytest.approx(0, abs=1e-7)
    distiller = make("lfd", student.eval(), teacher).eval()
    distiller(*batch()).total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in distiller.parameters())


def test_the_log_gets_class_weights_and_terms_without_gradient() -> None:
    distiller = make("lfd").train()
    result = distiller(*batch())
    assert not any(value.requires_grad for value in result.parts.values())
    assert distiller.statistics()["class_weight"].shape == (K,)
    assert make("kd").statistics() == {} and make("none").statistics() == {}


# What is refused


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"method": "ldf"}, "unknown method 'ldf'. Did you mean 'lfd'"),
        ({"method": "kd", "weights": {"fea": 1.0}}, "unknown loss weight of method 'kd' 'fea'"),
        ({"method": "none", "balance": "ema"}, "distill.balance = 'ema' has no effect: method 'none' balances nothing"),
        ({"method": "kd", "balance": "none"}, "distill.balance = 'none' has no effect: method 'kd' balances nothing"),
        ({"method": "lfd", "balance": "emma"}, "unknown value of distill.balance 'emma'. Did you mean 'ema'?"),
        ({"method": "kd", "mask_base": 0.1}, "[loss.lfd] has no effect: the losses of method 'kd' are kd"),
        ({"method": "none", "mask_base": 0.1}, "[loss.lfd] has no effect: the losses of method 'none' are none"),
        ({"method": "lfd", "mask_base": 2}, "loss.lfd.mask_base = 2.0; expected 0 to 1"),
        *(
            (
                {"apply_to": where},
                f"loss.lfd.apply_to = '{where}', but the student Net has no auxiliary head of its own. Fix: apply_to =",
            )
            for where in ("student_aux", "both")
        ),
        (
            {"apply_to": "both", "class_mask": "uniform"},
            "apply_to = 'both' has no effect with class_mask 'uniform'",
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_a_usage_error(call: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(**call)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("student", ["lraspp_mobilenet_v3_small", "deeplabv3_mobilenet_v2_os16"])
def test_a_real_student_without_an_auxiliary_head_is_refused_too(student: str) -> None:
    with pytest.raises(UsageError, match="has no auxiliary head of its own"):
        make("lfd", create_model(student, K)[0], apply_to="student_aux")


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].losses])
def test_a_method_without_its_teacher_is_refused_before_anything_is_built(method: str) -> None:
    with pytest.raises(UsageError, match="needs a teacher; give --teacher RUN"):
        check_teacher(method, False)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_the_feature_is_refused(role: str) -> None:
    class Bare(Net):
        taps: ClassVar[dict[str, str]] = {"shallow": "stem"}

    with pytest.raises(UsageError, match=f"the {role} Bare declares no feature 'deep'.*declares shallow"):
        make("lfd", **{role: Bare()})


# Pictures without labels


def half_unlabelled() -> tuple[Tensor, Tensor]:
    """A labelled picture, and one without labels that is void (outside) in its last rows."""
    image, target = batch()
    target[1] = UNKNOWN
    target[1, -8:] = IGNORE
    return image, target


@pytest.mark.parametrize("method", ["kd", "lfd"])
def test_the_teachers_classes_stand_for_labels_that_are_not_there(method: str) -> None:
    student, master, (image, target) = Net(aux=True), Net(9), half_unlabelled()
    taught = make(method, copy.deepcopy(student), master).train()
    parts = taught(image, target, 1.0, True).parts
    seen = bilinear(numpy(master.said["out"]), (64, 64)).argmax(1)
    filled = torch.where(target == UNKNOWN, torch.from_numpy(seen), target)
    expected = make(method, student, master).train()(image, filled, 1.0).parts
    assert {part: number(value) for part, value in parts.items()} == pytest.approx(
        {part: number(value) for part, value in expected.items()}, rel=1e-5
    )
    assert (filled == IGNORE).sum() == (target == IGNORE).sum()


def test_they_do_not_where_that_is_not_wanted() -> None:
    image, target = half_unlabelled()
    distiller = Distiller(Net(), SIZE, K, plan("kd"), Teacher(Net(9), SIZE, labels=False)).train()
    found = number(distiller(image, target, 1.0, True).parts["task"])
    labelled = target.masked_fill(target == UNKNOWN, IGNORE)
    assert found == pytest.approx(number(distiller(image, labelled, 1.0).parts["task"]), rel=1e-5)


def test_a_teacher_that_only_labels_is_asked_where_there_are_no_labels() -> None:
    """Every weight but that of the task is 0: training on the teacher's classes, and on nothing else of it."""
    student, master, (image, target) = Net(), Net(9), half_unlabelled()
    distiller = make("kd", student, master, weights={"kd": 0}).train()
    master.seen.clear()
    labelled = target.masked_fill(target == UNKNOWN, IGNORE)
    plain = number(distiller(image, labelled, 1.0).parts["task"])
    assert not master.seen, "nobody asks for what it says"
    result = distiller(image, target, 1.0, True)
    assert len(master.seen) == 1 and set(result.parts) == {"task"}
    seen = torch.from_numpy(bilinear(numpy(master.said["out"]), (64, 64)).argmax(1))
    expected = number(distiller(image, torch.where(target == UNKNOWN, seen, target), 1.0).parts["task"])
    assert number(result.parts["task"]) == pytest.approx(expected, rel=1e-5) != pytest.approx(plain, rel=1e-3)


# Taps by path


def test_taps_are_taken_where_they_are_given() -> None:
    student, master = Net(), Net(9)
    chosen = plan("lfd")
    distiller = Distiller(
        student, SIZE, K, chosen, Teacher(master, SIZE, taps={"deep": "stem.0"}), 1, {"deep": "stem.1"}
    )
    loss = distiller.losses[1]
    assert loss.adapter.weight.shape == (9, 6, 1, 1)
    image, target = batch()
    before = number(distiller.eval()(image, target).parts["fea"])
    plain = make("lfd", student, master).eval()
    plain.losses.load_state_dict(distiller.losses.state_dict())
    assert number(plain(image, target).parts["fea"]) != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_tap_that_no_loss_reads_is_refused(role: str) -> None:
    given = {"deeep": "stem"}
    teacher = Teacher(Net(9), SIZE, taps=given if role == "teacher" else {})
    with pytest.raises(
        UsageError, match=f"distill.{role}_taps.deeep has no effect: the method reads the features deep"
    ):
        Distiller(Net(), SIZE, K, plan("lfd"), teacher, 1, given if role == "student" else {})
