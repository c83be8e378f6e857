"""AT: Zagoruyko, Komodakis, "Paying more attention to attention", ICLR 2017, section 3.1, activation-based.

    Q_i = sum_c |F_ci|^p,  p = 2                                         a map's attention to position i
    L = sum over taps of mean_i (Q^s_i / ||Q^s||_2 - Q^t_i / ||Q^t||_2)^2,   mean over pictures

Eq. 2 of the paper has beta / 2 times the norm of the difference itself; the authors' code, and all that follow
it, take the mean of its squares over positions, and so does this.

Published: beta = 1000, divided by the number of positions in effect, for classifiers with 3 or 4 groups of
residual blocks; the CIRKD repository's train_at.sh has weight 10 000 on the feature before the classifier,
beside KD of weight 1 (`--method kd+at`). The latter is the weight here, for its crops of 512x1024 at stride 8: Q has
length 1 over the n positions, so that L falls as 1 / n. At other n, 10 000 n / 8192 is as much: at the 192 positions
of a crop of 96x128, where 10 000 gave 59 times the gradient of cross entropy at the first step, 234.

Void positions are left out of Q and of the mean: CHOSEN, both codes count them. Attention has no channels, so
that no adapter is needed; the teacher's features are resized to the student's grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lfd.config import within
from lfd.errors import UsageError
from lfd.losses.common import DistillLoss, counted, masked_mean, to_grid
from lfd.losses.vectors import SHORTEST, unit
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class ATOptions:
    """Options of AT, [loss.at].

    Attributes:
        taps: The features, one or more.
        power: p.
        void: Count void positions too, as the published code does.
    """

    taps: tuple[str, ...] = ("deep",)
    power: float = 2.0
    void: bool = False

    def __post_init__(self) -> None:
        if not self.taps or len(set(self.taps)) < len(self.taps):
            raise UsageError(f"loss.at.taps = {list(self.taps)}; expected one or more different features")
        within("loss.at.power", self.power, 1, 16)


class AT(DistillLoss):
    """Squared difference of normalised attention maps, on the student's grid."""

    parts: ClassVar[tuple[str, ...]] = ("at",)
    Options: ClassVar[type[Any]] = ATOptions

    @classmethod
    def needs(cls, options: ATOptions) -> tuple[str, ...]:
        """Return the features."""
        return options.taps

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: ATOptions = ATOptions(),
    ) -> None:
        super().__init__()
        self.options = options

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"at": scalar}; see `lfd.losses.DistillLoss`."""
        found = []
        for tap in self.options.taps:
            feature = student.taps[tap]
            grid = (feature.shape[2], feature.shape[3])
            known = counted(target, grid)
            if self.options.void:
                known = torch.ones_like(known)
            goal = to_grid(teacher.taps[tap], grid).detach()
            apart = self._attention(feature, known) - self._attention(goal, known)
            found.append(masked_mean(apart.square(), known.flatten(1)))
        return {"at": torch.stack(found).sum()}

    def _attention(self, feature: Tensor, known: Tensor) -> Tensor:
        """Return Q / ||Q|| of (B, C, h, w), as (B, hw)."""
        size = feature.float().abs() * known[:, None]
        # Q / ||Q|| is the same at any scale of the features; at this one no power of them overflows.
        size = size / size.detach().amax((1, 2, 3), keepdim=True).clamp_min(SHORTEST)
        return unit(size.pow(self.options.power).sum(1).flatten(1), 1)
