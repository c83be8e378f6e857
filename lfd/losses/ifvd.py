"""IFVD: Wang, Zhou, Jiang, Bai, Xu, "Intra-class feature variation distillation", ECCV 2020, section 3.2.

    c_k  = mean of F_j over the cells j of class k in the picture                          its prototype
    M_i  = cos(F_i, c_y(i))                                                 how far i varies from its class
    L    = mean_i (M^s_i - M^t_i)^2

Published: weight 200 in the authors' options.py, beside KD of weight 10 over the K classes' mean (10 / K of ours)
and SKD's adversarial term of weight 0.001; weight 20 in the CIRKD repository's train_ifvd.sh, beside KD of weight 1
(`--method kd+ifvd`) and the same adversarial term. CIRKD's, whose tables people compare with, is the one here.

Gradients reach the prototypes too, as in both codes. A cell's class is the label nearest to its centre; both codes
take the one at its upper left corner. Cells without a class, void or unlabelled, are in no prototype; they are
also left out of the mean: CHOSEN, both codes count them there with difference 0, which `void` gives. Prototypes are
of one picture, so that the features need neither common channels nor an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lfd.losses.common import IGNORE, DistillLoss, masked_mean, to_cells, to_grid
from lfd.losses.vectors import unit
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class IFVDOptions:
    """Options of IFVD, [loss.ifvd].

    Attributes:
        tap: The feature.
        void: Count cells without a class in the mean, as the published code does.
    """

    tap: str = "deep"
    void: bool = False


class IFVD(DistillLoss):
    """Squared difference of the features' cosine similarity to their class's prototype, on the student's grid."""

    parts: ClassVar[tuple[str, ...]] = ("ifvd",)
    Options: ClassVar[type[Any]] = IFVDOptions
    needs_labels: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: IFVDOptions) -> tuple[str, ...]:
        """Return the feature."""
        return (options.tap,)

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: IFVDOptions = IFVDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        self.num_classes = num_classes

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"ifvd": scalar}; see `lfd.losses.DistillLoss`."""
        feature = student.taps[self.options.tap]
        grid = (feature.shape[2], feature.shape[3])
        goal = to_grid(teacher.taps[self.options.tap], grid).detach()
        cells = to_cells(target, grid).flatten(1)
        classed = cells < IGNORE
        classes = torch.arange(self.num_classes, device=cells.device)[None, :, None]
        members = ((cells[:, None] == classes) & classed[:, None]).float()
        with torch.autocast(feature.device.type, enabled=False):
            error = (_variation(feature, members) - _variation(goal, members)).square()
        return {"ifvd": error.mean() if self.options.void else masked_mean(error, classed.float())}


def _variation(feature: Tensor, members: Tensor) -> Tensor:
    """Return M, (B, hw), of features (B, C, h, w) and their classes (B, K, hw), 0 or 1; 0 where there is none."""
    feature = feature.float().flatten(2)
    centres = feature @ members.transpose(1, 2) / members.sum(2)[:, None].clamp_min(1)
    return (unit(feature, 1) * (unit(centres, 1) @ members)).sum(1)
