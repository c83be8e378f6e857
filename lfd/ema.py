"""A moving average of a network's weights, which scores better than the last weights of a noisy run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """A copy of a network that follows it: a <- d a + (1 - d) w after each step, batch statistics too.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that the first random weights are forgotten in a
    short run too; the first update copies. torch's AveragedModel does as much, but reads its counter back from
    the GPU for every tensor.

    Args:
        model: The network, before any hook is put on it: hooks would be copied.
        decay: What is kept at each step, in [0, 1).

    Attributes:
        module: The average.
    """

    updates: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device="cpu"))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the network as it is now."""
        n = int(self.updates)
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        theirs = model.state_dict()
        pairs = [(ours, theirs[key]) for key, ours in self.module.state_dict().items()]
        moving = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moving], [b for _, b in moving], 1 - decay)
        for a, b in pairs:
            if not a.is_floating_point():  # a batch norm's counter
                a.copy_(b)
        self.updates += 1
