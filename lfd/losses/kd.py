"""KD: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, per pixel.

L_kd = T^2 mean_i KL(softmax(z_t,i / T) || softmax(z_s,i / T)),  T = 1      KNOWN, as a term of LFD
void pixels left out                                                         CHOSEN: the family's code counts them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lfd.config import within
from lfd.losses.common import DistillLoss, counted, kl_per_pixel, masked_mean, to_grid
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class KDOptions:
    """Options of KD, [loss.kd].

    Attributes:
        temperature: T.
        void: Count void pixels too, as the CIRKD family's code does.
    """

    temperature: float = 1.0
    void: bool = False

    def __post_init__(self) -> None:
        within("loss.kd.temperature", self.temperature, 0.01, 1000)


class KD(DistillLoss):
    """Per-pixel KL divergence of class probabilities, on the student's grid."""

    parts: ClassVar[tuple[str, ...]] = ("kd",)
    Options: ClassVar[type[Any]] = KDOptions

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: KDOptions = KDOptions(),
    ) -> None:
        super().__init__()
        self.options = options

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"kd": scalar}; see `lfd.losses.DistillLoss`."""
        grid = (student.logits.shape[2], student.logits.shape[3])
        kl = kl_per_pixel(to_grid(teacher.logits.detach(), grid), student.logits, self.options.temperature)
        return {"kd": kl.mean() if self.options.void else masked_mean(kl, counted(target, grid))}
