"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters that take part in inference (an auxiliary head does not)."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("aux_classifier."))


def count_macs(model: nn.Module, size_hw: tuple[int, int]) -> int:
    """Return multiply-accumulates of one picture: half of torch's FLOP count of convolutions and products.

    Args:
        model: The network; a copy without values is run once, which takes no time at any size.
        size_hw: Input size.
    """
    shell = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shell(torch.zeros(1, 3, *size_hw, device="meta"))
    flops: int = counter.get_total_flops()
    return flops // 2
