"""DIST: Huang, You, Wang, Qian, Xu, "Knowledge distillation from a stronger teacher", NeurIPS 2022, arXiv 2205.10536.

    p_s, p_t  = softmax(z / T), T = 1                                    rho is Pearson's correlation
    inter     = T^2 mean_i (1 - rho(p_s,i , p_t,i))                      over the classes of a cell i
    intra     = T^2 mean_k (1 - rho(p_s,k , p_t,k))                      over the cells of the batch, for a class k

Published: weight 1 on both, and T = 1, in the authors' segmentation code. That also distils the auxiliary
head's logits from the teacher's with weight 0.4, which this does not: a teacher here has only its logits. T^2 as in
their classification code; their segmentation code has no T. The denominator of rho has 1e-8 added, as theirs.

Where p does not vary at all (one class, equal logits), rho is undefined: 0 there as published, but without
gradient, which the published formula multiplies by 1e8. Void cells are left out of both: CHOSEN. intra is over the
batch of each process, as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lfd.config import within
from lfd.losses.common import DistillLoss, counted, masked_mean, to_grid
from lfd.losses.vectors import SHORTEST
from lfd.taps import Outputs, TapInfo

EPSILON = 1e-8
"""Added to the product of two deviations' lengths."""


@dataclass(frozen=True)
class DISTOptions:
    """Options of DIST, [loss.dist].

    Attributes:
        temperature: T.
        void: Count void cells too, as the published code does.
    """

    temperature: float = 1.0
    void: bool = False

    def __post_init__(self) -> None:
        within("loss.dist.temperature", self.temperature, 0.01, 1000)


class DIST(DistillLoss):
    """One minus the correlation of class probabilities, over classes and over cells, on the student's grid."""

    parts: ClassVar[tuple[str, ...]] = ("dist_inter", "dist_intra")
    Options: ClassVar[type[Any]] = DISTOptions

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: DISTOptions = DISTOptions(),
    ) -> None:
        super().__init__()
        self.options = options

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"dist_inter", "dist_intra"}; see `lfd.losses.DistillLoss`."""
        grid, scale = (student.logits.shape[2], student.logits.shape[3]), self.options.temperature
        known = counted(target, grid).flatten()
        if self.options.void:
            known = torch.ones_like(known)
        p_s, p_t = (  # (K, Bhw)
            F.softmax(logits.float() / scale, 1).transpose(0, 1).flatten(1)
            for logits in (student.logits, to_grid(teacher.logits, grid).detach())
        )
        inter = 1 - _correlation(p_s - p_s.mean(0), p_t - p_t.mean(0), 0)
        count = known.sum().clamp_min(1)
        s, t = ((p - (p * known).sum(1, keepdim=True) / count) * known for p in (p_s, p_t))
        intra = 1 - _correlation(s, t, 1)
        return {
            "dist_inter": masked_mean(inter, known) * scale**2,
            "dist_intra": intra.mean() * known.amax() * scale**2,  # 0 where all is void
        }


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return the cosine between deviations along a dimension; 0, without gradient, where one has no length."""
    length_a, length_b = (torch.linalg.vector_norm(x, dim=dim) for x in (a, b))
    cosine = (a * b).sum(dim) / (length_a * length_b + EPSILON)
    return torch.where((length_a > SHORTEST) & (length_b > SHORTEST), cosine, 0)
