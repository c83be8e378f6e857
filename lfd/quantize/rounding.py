"""Kernels and biases on the grids of their integers, and the mark that stands for a rounding in an export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lfd.quantize.topology import Target

QMAX = 127
SMALLEST_SCALE = 2.0**-20
"""Sixteen steps of fp16's smallest number. A channel below 1.2e-4 everywhere loses digits that nobody misses."""


def held(scale: Tensor, target: Target) -> Tensor:
    """Return scales in float32 as a target's file holds them.

    ONNX Runtime takes 1 for what is no normal number. The others have a smallest one; TensorRT's file, in fp16 beside
    its integers, has numbers of fp16, rounded up, so that nothing falls outside of the range.
    """
    if target == "ort":
        return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    scale = scale.clamp_min(SMALLEST_SCALE)
    if target == "openvino":
        return scale
    half = scale.clamp_max(torch.finfo(torch.float16).max).half()
    up = (half.view(torch.int16) + 1).view(torch.float16).float()  # of a positive number the next; of the last, inf
    half = half.float()
    return torch.where((half < scale) & (up < torch.inf), up, half)


@torch.library.custom_op("lfd::mark", mutates_args=())
def mark(tensor: Tensor, number: int) -> Tensor:
    """Return a tensor as it is; in an exported graph the call says which one it is."""
    del number
    return tensor.clone()


@mark.register_fake
def _(tensor: Tensor, number: int) -> Tensor:
    del number
    return torch.empty_like(tensor)


class _Straight(torch.autograd.Function):
    """A rounded kernel, laid out in memory as the kernel, as DistributedDataParallel wants the gradient to be.

    No weight lies outside of its grid, so that all of the gradient passes.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rounded: Tensor) -> Tensor:
        del ctx
        return torch.empty_strided(weights.size(), weights.stride(), dtype=weights.dtype, device=weights.device).copy_(
            rounded
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        del ctx
        return gradient, None


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        return tensor.half().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        del ctx
        return gradient


def in_half(tensor: Tensor) -> Tensor:
    """Return float32 values rounded to numbers of fp16, too large ones infinite; the gradient passes unrounded."""
    rounded: Tensor = _Half.apply(tensor)
    return rounded


def round_weights(weights: Tensor, axis: int | None, target: Target) -> Tensor:
    """Return a kernel as its int8 form is dequantised: symmetric, its largest magnitude 127 steps, a scale a channel.

    Args:
        weights: The kernel.
        axis: Of its output channels; None for one scale.
        target: Whose scales.
    """
    values, scale = weights.float(), scale_of(weights, axis, target)
    zero = torch.zeros(scale.shape, dtype=torch.int32, device=scale.device)
    if axis is None:
        rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero, -QMAX, QMAX)
    else:
        rounded = torch.fake_quantize_per_channel_affine(values, scale, zero, axis, -QMAX, QMAX)
    if target == "trt":  # whose file dequantises to fp16
        rounded = in_half(rounded)
    straight: Tensor = _Straight.apply(weights, rounded)
    return straight


def round_bias(bias: Tensor, step: Tensor) -> Tensor:
    """Return a bias on its grid, whose integers have 32 bits.

    Args:
        bias: (C,).
        step: (C,).
    """
    values = bias.detach().double()
    rounded = (values / step).round() * step
    return bias + (rounded - values).to(bias.dtype)


def scale_of(weights: Tensor, axis: int | None, target: Target) -> Tensor:
    """Return the step of a kernel's int8 form, a channel each, (C,), or (1,); see `round_weights`."""
    dims = [dim for dim in range(weights.dim()) if dim != axis]
    scale = weights.detach().float().abs().amax(dims) / QMAX
    return held(scale, target).reshape(-1)


def in_units(tensor: Tensor, units: Tensor | None, change: Callable[[Tensor], Tensor], inverse: bool = False) -> Tensor:
    """Return a tensor changed as it is in other units: a picture is multiplied by them, its kernel divided."""
    if units is None:
        return change(tensor)
    return change(tensor / units) * units if inverse else change(tensor * units) / units
