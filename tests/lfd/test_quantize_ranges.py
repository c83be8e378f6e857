"""Ranges of a student in INT8: looked at when they come from outside, averaged, in fp16 beside them, and handed on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lfd.ema import Average
from lfd.quantize.flavours import plan
from lfd.quantize.fold import fold
from lfd.quantize.rounding import in_half
from lfd.quantize.student import Int8, as_int8, attach
from lfd.quantize.topology import TARGETS, Target
from lfd.quantize.trace import PICTURE, trace
from lfd.spec import Preprocess

HW = (16, 16)
RELU, MIDDLE = ":relu:0", "middle:conv2d:0"


class Pools(nn.Module):
    """Three convolutions; what is between them hands values on, or makes means of them."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.mean = nn.AvgPool2d(2)
        self.head = nn.Conv2d(4, num_classes, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        values = self.mean(self.middle(self.pool(torch.relu(self.stem(image)))))
        return {"out": self.head(values[:, :4])}


def ranged(target: Target) -> tuple[nn.Module, Int8]:
    """A network with the ranges of one picture."""
    torch.manual_seed(0)
    model = Pools().eval()
    int8 = attach(model, target, Preprocess(HW))
    follow(model, int8, torch.randn(1, 3, *HW))
    return model, int8


def follow(model: nn.Module, int8: Int8, picture: Tensor) -> None:
    """Let the ranges become those of a picture."""
    int8.set_momentum(1)
    int8.train()
    int8.observing = True
    with torch.no_grad(), as_int8(model):
        model(picture)
    int8.observing = False


@pytest.mark.parametrize(
    ("target", "part", "value", "sound"),
    [
        ("ort", "scale", 1e-30, True),
        ("ort", "scale", 0.0, False),
        ("ort", "scale", -0.1, False),
        ("trt", "scale", float("nan"), False),
        ("ort", "zero_point", 0, True),
        ("ort", "zero_point", 255, True),
        ("ort", "zero_point", 256, False),
        ("ort", "zero_point", -1, False),
        ("trt", "zero_point", 1, False),
        ("openvino", "zero_point", -1, False),
        ("ort", "activation_post_process.min_val", 1e9, False),
        ("openvino", "activation_post_process.max_val", float("nan"), False),
    ],
)
@pytest.mark.parametrize("place", [0, -1])
def test_a_range_that_is_none_is_told(target: Target, part: str, value: float, sound: bool, place: int) -> None:
    _, int8 = ranged(target)
    assert int8.sound()
    int8._of(int8.plan.tensors[place]).get_buffer(part).fill_(value)
    assert int8.sound() == sound


@pytest.mark.parametrize("target", TARGETS)
def test_ranges_that_nothing_has_passed_are_none(target: Target) -> None:
    assert not attach(Pools().eval(), target, Preprocess(HW)).sound()


def test_an_average_of_weights_takes_the_ranges_as_they_are() -> None:
    """They are moving averages already; and a mean of zero points is no zero point."""
    model, int8 = ranged("ort")
    average = Average(model, 0.5)
    average.update(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-3)
    follow(model, int8, 5 * torch.randn(1, 3, *HW))
    average.update(model)
    ours, theirs = average.module.state_dict(), model.state_dict()
    moved = [key for key in theirs if not torch.equal(theirs[key], before[key])]
    ranges = [key for key in moved if key.startswith("int8.")]
    for part in ("scale", "zero_point", "min_val", "max_val"):
        assert any(key.endswith(part) for key in ranges), part
    assert all(torch.equal(ours[key], theirs[key]) for key in ranges)
    assert set(moved) - set(ranges) == {name for name, _ in model.named_parameters()}
    for key in set(moved) - set(ranges):  # 2 / 11 of what was, see `Average`
        assert torch.allclose(ours[key], (2 * before[key] + 9 * theirs[key]) / 11, rtol=1e-5, atol=1e-6), key


@given(st.floats(-65504, 65504, width=32))
def test_in_half_precision_is_as_numpy_rounds_it(x: float) -> None:
    value = torch.tensor([x], dtype=torch.float32, requires_grad=True)
    found = in_half(value)
    found.sum().backward()
    assert found.dtype == torch.float32 and found.item() == float(np.float16(np.float32(x)))
    assert value.grad is not None and value.grad.tolist() == [1]


@pytest.mark.parametrize(("target", "wanted"), [("trt", [0.5, -0.5]), ("openvino", [0.375, -0.375])])
def test_what_tensorrt_rounds_comes_out_of_a_layer_in_half_precision(target: Target, wanted: list[float]) -> None:
    """3.4999 steps: the next number of fp16 is 3.5, which goes to the even side."""
    _, int8 = ranged(target)
    int8.mode, name = "simulate", int8.plan.tensors[1]
    int8._of(name).scale.fill_(0.125)
    values = torch.tensor([0.4375 - 1e-5, -0.4375 + 1e-5], requires_grad=True)
    found = int8._round(values, name)
    found.sum().backward()
    assert found.tolist() == wanted and values.grad is not None and values.grad.tolist() == [1, 1]


class Bias(nn.Module):
    """Gives its bias, whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 2, 1)
        nn.init.zeros_(self.only.weight)
        self.only.bias = nn.Parameter(torch.tensor([1 / 3, -1000.1]))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.only(image)}


@pytest.mark.parametrize(("target", "kind"), [("trt", np.float16), ("openvino", np.float32)])
def test_a_bias_has_the_numbers_of_its_file(target: Target, kind: Any) -> None:
    model = Bias().eval()
    attach(model, target, Preprocess(HW))
    with torch.no_grad(), as_int8(model):
        found = model(torch.zeros(1, 3, *HW))["out"]
    for channel, value in enumerate((1 / 3, -1000.1)):
        assert set(found[0, channel].flatten().tolist()) == {float(kind(np.float32(value)))}


def test_what_is_handed_on_has_the_range_of_what_it_holds() -> None:
    """ONNX Runtime hands integers through a maximum and a slice, and wants a mean on the scale of what it is of."""
    model = Pools().eval()
    fold(model, HW)
    network = trace(model, HW)
    found = plan(network, "ort")
    assert found.tensors == (PICTURE, RELU, MIDDLE, "head:conv2d:0")
    assert found.outputs == {
        RELU: {0: RELU},
        MIDDLE: {0: MIDDLE},
        "mean:avg_pool2d:0": {0: MIDDLE},
        "head:conv2d:0": {0: "head:conv2d:0"},
    }
    for target in ("trt", "openvino"):  # of these pairs stand in front; a maximum has the same one before and behind it
        inputs = plan(network, target).inputs
        assert inputs["pool:max_pool2d:0"] == inputs[MIDDLE] == {0: RELU}
        assert inputs["mean:avg_pool2d:0"] == {0: MIDDLE} and inputs["head:conv2d:0"] == {0: ":__getitem__:0"}


def test_a_mean_lies_on_the_grid_of_what_it_is_of() -> None:
    model, int8 = ranged("ort")
    seen: dict[str, Tensor] = {}
    for name in ("pool", "middle", "mean"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad(), as_int8(model):
        model(torch.randn(1, 3, *HW))
    for name, owner in (("pool", RELU), ("middle", MIDDLE), ("mean", MIDDLE)):
        steps = seen[name] / int8._of(owner).scale
        assert torch.allclose(steps, steps.round(), atol=1e-3) and len(steps.round().unique()) > 20, name
    exact = torch.nn.functional.avg_pool2d(seen["middle"], 2)
    assert 0 < float((seen["mean"] - exact).abs().max()) <= 0.501 * float(int8._of(MIDDLE).scale)
