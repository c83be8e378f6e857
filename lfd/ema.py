"""A moving average of a network's weights, which scores better than the last weights of a noisy run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lfd.quantize.student import MODULE


class Average(nn.Module):
    """A copy of a network that follows it: a <- d a + (1 - d) w after each step, batch statistics too.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that the first random weights are forgotten in a
    short run too; the first update copies. torch's AveragedModel does as much, but reads its counter back from
    the GPU for every tensor.

    Args:
        model: The network, before any tap is put on it: hooks are copied, and INT8's know their copy.
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
        ours, theirs = self.module.state_dict(), model.state_dict()
        # Ranges of INT8 are moving averages already, and a scale goes with its zero point.
        moving = [k for k, v in ours.items() if v.is_floating_point() and not k.startswith(f"{MODULE}.")]
        torch._foreach_lerp_([ours[k] for k in moving], [theirs[k] for k in moving], 1 - decay)
        for key in ours.keys() - set(moving):  # these, and a batch norm's counter
            ours[key].copy_(theirs[key])
        self.updates += 1
