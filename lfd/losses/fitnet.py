"""FitNet: Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio, "FitNets: hints for thin deep nets", ICLR 2015.

    L = mean_i mean_c (r(F_s)_ci - F_t,ci)^2                         eq. 3 of the paper, there 1/2 of the sum

r, the regressor, is a 1x1 convolution without bias to the teacher's channels, as in the CIRKD repository; the
paper has a larger kernel that also matches the grids, here the teacher's features are resized to the student's.

Published: the paper trains the student up to the hint on L alone, and the whole by KD afterwards; the CIRKD
repository trains it in one stage with weight 10 on the feature before the classifier (its train_fitnet.sh, beside
KD of weight 1: `--method kd+fitnet`). The latter is what is here.

Void positions are left out: CHOSEN, the published code counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lfd.losses.common import DistillLoss, counted, masked_mean, to_grid
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class FitNetOptions:
    """Options of FitNet, [loss.fitnet].

    Attributes:
        tap: The feature: the teacher's is the hint, the student's is guided.
        void: Count void positions too, as the published code does.
    """

    tap: str = "deep"
    void: bool = False


class FitNet(DistillLoss):
    """Mean squared error between the student's regressed features and the teacher's, on the student's grid."""

    parts: ClassVar[tuple[str, ...]] = ("fitnet",)
    Options: ClassVar[type[Any]] = FitNetOptions

    @classmethod
    def needs(cls, options: FitNetOptions) -> tuple[str, ...]:
        """Return the feature."""
        return (options.tap,)

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: FitNetOptions = FitNetOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        self.regressor = nn.Conv2d(student[options.tap].channels, teacher[options.tap].channels, 1, bias=False)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"fitnet": scalar}; see `lfd.losses.DistillLoss`."""
        guided = self.regressor(student.taps[self.options.tap])
        grid = (guided.shape[2], guided.shape[3])
        hint = to_grid(teacher.taps[self.options.tap], grid).detach()
        error = (guided.float() - hint.float()).square().mean(1)
        return {"fitnet": error.mean() if self.options.void else masked_mean(error, counted(target, grid))}
