"""Steps on folded kernels in the units they had before, and what else keeps INT8 training near its float student."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from lfd.distiller import SECOND, Distiller, Teacher
from lfd.errors import UsageError
from lfd.losses.common import IGNORE
from lfd.methods import plan
from lfd.normalize import Normalize
from lfd.quantize.fold import fold, step_unfolded
from lfd.quantize.rounding import in_half, round_weights, scale_of
from lfd.quantize.student import attach
from lfd.quantize.topology import TARGETS, Target
from lfd.recipe import from_mapping
from lfd.spec import Preprocess
from tests.lfd.test_quantize import HW, network


class Pair(nn.Module):
    """A convolution and its batch norm, whose channels differ a millionfold; one of them is switched off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4).eval()
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1e-3, -1.0, 1e3, 0.0]))
            self.norm.running_var.copy_(torch.tensor([1.0, 4.0, 0.25, 1.0]))  # type: ignore[union-attr]
            self.norm.running_mean.copy_(torch.tensor([0.5, 0.0, -1.0, 0.0]))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.norm(self.conv(x))}


def test_folding_says_by_how_much_it_multiplied() -> None:
    model = Pair().eval()
    eps = model.norm.eps
    wanted = torch.tensor([1e-3 / (1 + eps) ** 0.5, 1 / (4 + eps) ** 0.5, 1e3 / (0.25 + eps) ** 0.5, 1.0])
    assert torch.allclose(fold(model, (8, 8))["conv"], wanted)


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
        partial(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.999)),
    ],
)
def test_a_step_on_a_folded_kernel_is_the_step_before_folding(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Five steps with weight decay; what is not folded away, the shift, learns as it did too."""
    apart, folded = Pair().eval(), Pair().eval()
    factors = fold(folded, (8, 8))
    assert folded.conv.bias is not None
    ours = make([{"params": [folded.conv.weight], "weight_decay": 0.1}, {"params": [folded.conv.bias]}])
    step_unfolded(ours, [(folded.conv.weight, factors["conv"].view(-1, 1, 1, 1))])
    theirs = make([{"params": [apart.conv.weight], "weight_decay": 0.1}, {"params": [apart.norm.bias]}])
    before = folded.conv.weight.detach().clone()
    for seed in range(5):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in ((apart, theirs), (folded, ours)):
            optimizer.zero_grad()
            out = model(x)["out"]
            (out * torch.tensor([1.0, 1.0, 1e-3, 1.0]).view(1, 4, 1, 1)).square().mean().backward()
            optimizer.step()
    merged = copy.deepcopy(apart)
    fold(merged, (8, 8))
    for found, wanted in zip(folded.conv.weight[:3], merged.conv.weight[:3], strict=True):  # the fourth is off
        assert torch.allclose(found, wanted, rtol=0, atol=1e-4 * float(wanted.detach().abs().max()))
    assert torch.allclose(folded.conv.bias, merged.conv.bias, rtol=2e-3, atol=1e-5)  # type: ignore[arg-type]
    assert all(not torch.equal(folded.conv.weight[i], before[i]) for i in range(3))


def test_gradients_are_in_the_units_from_before_so_that_clipping_is() -> None:
    model = Pair().eval()
    factors = fold(model, (8, 8))
    x = torch.randn(2, 3, 8, 8)
    model(x)["out"].square().mean().backward()
    folded = model.conv.weight.grad
    assert folded is not None
    model.zero_grad()
    step_unfolded(torch.optim.SGD(model.parameters(), 0.1), [(model.conv.weight, factors["conv"].view(-1, 1, 1, 1))])
    model(x)["out"].square().mean().backward()
    assert torch.allclose(model.conv.weight.grad, folded * factors["conv"].view(-1, 1, 1, 1))  # type: ignore[arg-type]


class Tied(nn.Module):
    """Two convolutions that share a kernel, of which only one has a batch norm; and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(3))
        self.b.weight = self.a.weight
        self.norm, self.end = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.c.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.end(self.c(self.norm(self.a(x)) + self.b(x)))}


def test_a_kernel_that_others_have_too_is_not_folded() -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(2, 3, 8, 8)
    model(x)
    before = model.eval()(x)["out"]
    assert list(fold(model, (8, 8))) == ["c"]
    assert torch.allclose(model(x)["out"], before, atol=1e-5)
    assert model.c.bias is not None and not model.c.bias.requires_grad, "frozen stays frozen"


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_are_what_the_file_dequantises_to(target: Target) -> None:
    """By the reference implementation of DequantizeLinear: in fp16 for TensorRT, in fp32 for the others."""
    weights = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = scale_of(weights, 0, target).numpy()
    steps = np.clip(np.rint(weights.numpy() / scale.reshape(-1, 1, 1, 1)), -127, 127).astype(np.int8)
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0)
    names = [helper.make_tensor_value_info(n, t, None) for n, t in (("q", 3), ("s", 10 if target == "trt" else 1))]
    graph = helper.make_graph([node], "g", names, [helper.make_tensor_value_info("y", 1, None)])
    reference = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    (wanted,) = reference.run(None, {"q": steps, "s": scale.astype(np.float16) if target == "trt" else scale})
    found = round_weights(weights, 0, target).numpy()
    assert np.array_equal(found, wanted.astype(np.float32))
    assert bool((found == found.astype(np.float16)).all()) == (target == "trt")


def test_what_is_too_large_for_fp16_is_infinite_and_no_nan() -> None:
    values = torch.tensor([-torch.inf, -1e9, 1.0], requires_grad=True)
    half = in_half(in_half(values))
    half[2].backward()
    assert half.tolist() == [-torch.inf, -torch.inf, 1.0] and values.grad is not None
    assert values.grad.tolist() == [0.0, 0.0, 1.0]


def test_the_student_as_it_began_is_a_second_teacher() -> None:
    """Its term is the KL divergence of what the float student says, void left out; the weight is the one given."""
    begun = network("lraspp_mobilenet_v3_small")
    model, preprocess = copy.deepcopy(begun), Preprocess(HW)
    int8 = attach(model, "ort", preprocess)
    int8.mode, int8.until = "simulate", 1.0
    image = torch.randint(0, 256, (2, 3, *HW), dtype=torch.uint8)
    target = torch.randint(0, 5, (2, *HW))
    target[:, : HW[0] // 2] = IGNORE
    made = [
        Distiller(model, preprocess, 5, plan("none"), second=second)
        for second in (None, (Teacher(begun, preprocess, labels=False), 3.0))
    ]
    for distiller in made:
        distiller.train()(image, target, 0.0)  # ranges
    alone, result = (distiller(image, target, 1.0) for distiller in made)
    assert set(result.parts) == {"task", SECOND} and set(alone.parts) == {"task"}
    with torch.no_grad():
        said, says = (m(Normalize(preprocess)(image))["out"] for m in (begun, model))
        kl = F.kl_div(says.log_softmax(1), said.log_softmax(1), log_target=True, reduction="none").sum(1)
        counted = F.interpolate((target != IGNORE).float()[:, None], kl.shape[1:])[:, 0]
    assert float(result.parts[SECOND]) == pytest.approx(float((kl * counted).sum() / counted.sum()), rel=1e-4)
    assert result.total.item() == pytest.approx((alone.total + 3 * result.parts[SECOND]).item(), rel=1e-4)
    assert not any(p.requires_grad for p in begun.parameters()) and not begun.training
    assert not any(key.startswith("_second") for key in made[1].state_dict())


def test_a_second_teacher_without_int8_is_refused() -> None:
    with pytest.raises(UsageError, match=r"quantize\.second_teacher = 1 has no effect without --quantize"):
        from_mapping({"quantize": {"second_teacher": 1.0}})
