"""Balancing terms of different size, so that no term's unit decides how much it counts.

    detach   L / sg(L): the value 1 with the gradient of log L                              KNOWN
    ema      L / sg(moving average of L), 0.99: the same on average, smoother from step to step   CHOSEN
    none     L                                                                              CHOSEN

sg is the value without gradient, over all processes. A weight inside the division would have no effect
at all, so weights stand outside (`lfd.distiller`). The balanced total is a constant and says nothing:
logs show the raw terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lfd.config import BALANCES, among
from lfd.distributed import all_sum, world_size

MOMENTUM = 0.99
TINY = 1e-8


class Balance(nn.Module):
    """Divides terms by their size.

    Args:
        kind: `detach`, `ema` or `none`.
        terms: Names of what it is called with.
        parts: Calls with each term that make up an optimiser step.

    Raises:
        UsageError: Another kind.
    """

    average: Tensor

    def __init__(self, kind: str, terms: Sequence[str], parts: int = 1) -> None:
        super().__init__()
        among("distill.balance", kind, BALANCES)
        self.kind = kind
        self.terms = tuple(terms)
        self.momentum = MOMENTUM ** (1 / parts)
        if kind == "ema":
            self.register_buffer("average", torch.zeros(len(self.terms)))

    def forward(self, name: str, term: Tensor) -> Tensor:
        """Return the balanced term, in float32: a quotient of half precision is too coarse; L itself near zero."""
        term = term.float()
        if self.kind == "none":
            return term
        size = all_sum(term).abs() / world_size()
        if self.kind == "ema":
            size = self._track(self.terms.index(name), size)
        return torch.where(size > TINY, term / size.clamp_min(TINY), term)

    @torch.no_grad()
    def _track(self, index: int, size: Tensor) -> Tensor:
        """Move the average of a part and return it; a step without anything to say leaves it."""
        before = self.average[index].clone()
        if not self.training:
            return torch.where(before > TINY, before, size)
        moved = torch.where(before > TINY, self.momentum * before + (1 - self.momentum) * size, size)
        self.average[index] = torch.where(size > TINY, moved, before)
        return self.average[index].clone()
