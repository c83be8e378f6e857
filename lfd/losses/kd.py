"""KD: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, per pixel.

L_kd = T^2 mean_i KL(softmax(z_t,i / T) || softmax(z_s,i / T)),  T = 1, void pixels left out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from lfd.losses.common import DistillLoss, kl_per_pixel, labelled, masked_mean, to_grid
from lfd.taps import Outputs, TapInfo


class KD(DistillLoss):
    """Per-pixel KL divergence of class probabilities, on the student's grid.

    Args:
        student: Shapes of the student's outputs; not needed here.
        teacher: Shapes of the teacher's outputs; not needed here.
        num_classes: K; not needed here.
        temperature: T.
        void: Count void pixels too, as the CIRKD family's code does.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ("kd",)

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        temperature: float = 1.0,
        void: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.void = void

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"kd": scalar}; see `lfd.losses.DistillLoss`."""
        grid = (student.logits.shape[2], student.logits.shape[3])
        kl = kl_per_pixel(to_grid(teacher.logits, grid), student.logits, self.temperature)
        return {"kd": kl.mean() if self.void else masked_mean(kl, labelled(target, grid))}
