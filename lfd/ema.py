"""A moving average of a network's weights, which scores better than the last weights of a noisy run."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network that `update_parameters` moves towards it.

    The decay grows as min(decay, (1 + n) / (10 + n)) with the number of updates n, so that the first
    random weights are forgotten in a short run too. Batch statistics are averaged with the weights.

    Args:
        model: The network, before any hook is put on it: hooks would be copied.
        decay: What is kept at each step, in [0, 1).
    """

    def move(average: Tensor, value: Tensor, updates: Tensor | int) -> Tensor:
        if not average.is_floating_point():  # a batch norm's counter
            return value
        n = int(updates)
        return average.lerp(value, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, avg_fn=move, use_buffers=True)
