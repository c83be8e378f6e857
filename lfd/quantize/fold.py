"""Batch norms out of a network that is to be trained in INT8: folded into their convolutions, the others frozen.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
section 3.2: what is rounded in training must be the folded kernel. With the statistics of the float network frozen from
the first step, folding can be done once, for good: the trained kernel is the exported one, at the price of a plain
convolution. The optimiser goes on in the units of the kernel before folding (`step_unfolded`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lfd.quantize.topology import Topology
from lfd.quantize.trace import Call, module_of, trace


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that keeps its statistics in training too; its weight and bias go on learning."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation."""
        del mode
        super().train(False)
        return self


def fold(model: nn.Module, size_hw: tuple[int, int]) -> dict[str, Tensor]:
    """Fold and freeze a network's batch norms and take its dropout out, in place; in evaluation it stays what it was.

    Every module keeps its path: what became part of a convolution is an `nn.Identity`.

    Args:
        model: The network, with trained statistics.
        size_hw: Input size.

    Returns:
        A folded convolution's path to the magnitude, (C,), by which each output channel's kernel was multiplied; 1 in
        place of 0.
    """
    network = trace(model, size_hw)
    factors: dict[str, Tensor] = {}
    for node in network.nodes:
        pair = _pair(model, network, node)
        if pair is not None:
            conv, norm = pair
            factors[module_of(network.producer[node.input[0]].name)] = _absorb(conv, norm)
            model.set_submodule(module_of(node.name), nn.Identity())
    for path, module in list(model.named_modules()):
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            # What it scales up would lie outside of the range that evaluation sees.
            model.set_submodule(path, nn.Identity())
        elif type(module) is nn.BatchNorm2d and module.track_running_stats:
            module.__class__ = FrozenBatchNorm2d
            module.eval()
    return factors


def step_unfolded(optimizer: torch.optim.Optimizer, kernels: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    """Let an optimiser take its steps on kernels as they were before folding.

    A step of Adam is as long for a small number as for a large one. Folding multiplies channels by factors that differ
    a hundredfold in a MobileNet, so that the steps which suited the float network would be far too long for some
    channels and nothing for others. Gradients, which may be clipped, momentum and weight decay are in those units too.

    Args:
        optimizer: Of the parameters, made.
        kernels: Parameters, and what each was multiplied by, to be broadcast to it.
    """
    for kernel, factor in kernels:
        if kernel.requires_grad:
            kernel.register_hook(lambda gradient, factor=factor: gradient * factor)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def unfold(*_: object) -> None:
        for kernel, factor in kernels:
            if kernel.grad is not None:
                kernel.div_(factor)

    @torch.no_grad()
    def refold(*_: object) -> None:
        for kernel, factor in kernels:
            if kernel.grad is not None:
                kernel.mul_(factor)

    optimizer.register_step_pre_hook(unfold)
    optimizer.register_step_post_hook(refold)


def _pair(model: nn.Module, network: Topology[Call], node: Call) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """Return a batch norm and the convolution that works for it alone; each is called once."""
    made = network.producer.get(node.input[0]) if node.op_type == "BatchNormalization" else None
    if made is None or made.op_type != "Conv" or len(network.consumers[node.input[0]]) != 1:
        return None
    conv, norm = (model.get_submodule(module_of(call.name)) for call in (made, node))
    once = all(
        sum(module_of(other.name) == module_of(call.name) for other in network.nodes) == 1 for call in (made, node)
    )
    fits = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None and once
    # A weight that is computed, or that another module has too, cannot be another here.
    own = conv._parameters.get("weight")
    holders = sum(p is own for module in model.modules() for p in module._parameters.values())
    fits = fits and own is not None and holders == 1
    return (conv, norm) if fits else None  # type: ignore[return-value]


@torch.no_grad()
def _absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Make a convolution do what it and its batch norm do in evaluation; in double precision, rounded once.

    Returns:
        What `fold` does of it.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # noqa: S101  _pair saw to it
    factor = 1 / torch.sqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    before = mean.new_zeros(mean.shape) if conv.bias is None else conv.bias
    shift: Tensor = (before.double() - mean.double()) * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    conv.weight.copy_(conv.weight.double() * factor.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), conv.weight.requires_grad)
    magnitude = factor.abs().to(conv.weight.dtype)
    return torch.where(magnitude > 0, magnitude, torch.ones_like(magnitude))
