"""Batch norms out of a network that is to be trained in INT8: folded into their convolutions, the others frozen.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
section 3.2: what is rounded in training must be the folded kernel. With the statistics of the float network frozen from
the first step, folding can be done once, for good: the trained kernel is the exported one, at the price of a plain
convolution.
"""

from __future__ import annotations

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


def fold(model: nn.Module, size_hw: tuple[int, int]) -> None:
    """Fold and freeze a network's batch norms and take its dropout out, in place; in evaluation it stays what it was.

    Every module keeps its path: what became part of a convolution is an `nn.Identity`.

    Args:
        model: The network, with trained statistics.
        size_hw: Input size.
    """
    network = trace(model, size_hw)
    for node in network.nodes:
        pair = _pair(model, network, node)
        if pair is not None:
            conv, norm = pair
            _absorb(conv, norm)
            model.set_submodule(module_of(node.name), nn.Identity())
    for path, module in list(model.named_modules()):
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            # What it scales up would lie outside of the range that evaluation sees.
            model.set_submodule(path, nn.Identity())
        elif type(module) is nn.BatchNorm2d and module.track_running_stats:
            module.__class__ = FrozenBatchNorm2d
            module.eval()


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
    return (conv, norm) if fits else None  # type: ignore[return-value]


@torch.no_grad()
def _absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Make a convolution do what it and its batch norm do in evaluation; in double precision, rounded once."""
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
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
