"""DSD, double similarity distillation: pixels across layers, and classes.

Feng, Sun, Diao, Li, Gao, "Double Similarity Distillation for Semantic Image Segmentation", IEEE Transactions on
Image Processing 30, 2021 (arXiv 2107.08591): its PSD and CSD modules. The authors published no code; the formulas are
those of the CIRKD repository (losses/dsd.py), which the field's figures for DSD come from.

    Q_l        = n(mean_c F_l,c^2)            attention of layer l over the cells, n(x) = x / |x|_2
    R_lm       = n(Q_m - Q_l), l < m          residual attention of two layers
    pixel      mean over pairs l < m, pictures and cells of (R_lm^s - R_lm^t)^2
    P_k        = softmax over cells of z_k / T, z averaged over 2x2 cells,  T = 4
    category   mean_kl (P_k^s . P_l^s - P_k^t . P_l^t)^2

Published weights: 1000 and 10, of the CIRKD repository (train_scripts/train_kd/train_dsd.sh), without KD.

    layers     there: the auxiliary head's logits on stage 3, the feature before the classifier, the logits. Here
               `taps` and the logits; stage 4 for the auxiliary head, which not every network has        CHOSEN
    grids      attention maps are resized to the student's logits; there all grids are one               CHOSEN
    void       left out of norms, softmax and means; `void` counts it, as there                          CHOSEN

Both depend on the grid; the weights are for 64x128 cells, crops of 512x1024 at stride 8. R has length 1 over the n
cells, so `pixel` falls as 1 / n: 1000 n / 8192 is as much (1000 gave 25 times the gradient of cross entropy on 192
cells). P sums to one over them, so `category` is of the order of 1 / n^2: with the published weight of 10 it moves next
to nothing on grids as large as theirs, and little on small ones (1 / 60 000 of cross entropy's on 192 cells).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lfd.config import within
from lfd.errors import UsageError
from lfd.losses.common import DistillLoss, counted, masked_mean, to_grid
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class DSDOptions:
    """Options of DSD, [loss.dsd].

    Attributes:
        taps: Features that `dsd_pixel` relates with each other and with the logits, the shallowest first.
        temperature: T of `dsd_category`.
        void: Count void pixels too, as the published code does.
    """

    taps: tuple[str, ...] = ("stage4", "deep")
    temperature: float = 4.0
    void: bool = False

    def __post_init__(self) -> None:
        if not self.taps or len(set(self.taps)) < len(self.taps):
            raise UsageError(f"loss.dsd.taps = {list(self.taps)}; expected one or more different features")
        within("loss.dsd.temperature", self.temperature, 0.01, 1000)


class DSD(DistillLoss):
    """Residual attention between layers, and the correlation of class maps; no parameters."""

    parts: ClassVar[tuple[str, ...]] = ("dsd_pixel", "dsd_category")
    Options: ClassVar[type[Any]] = DSDOptions
    serves: ClassVar[Mapping[str, tuple[str, ...]]] = {"taps": ("dsd_pixel",), "temperature": ("dsd_category",)}

    @classmethod
    def needs(cls, options: DSDOptions) -> tuple[str, ...]:
        """Return the layers beside the logits."""
        return options.taps

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: DSDOptions = DSDOptions(),
    ) -> None:
        super().__init__()
        self.options = options

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"dsd_pixel", "dsd_category"}; see `lfd.losses.DistillLoss`."""
        grid = (student.logits.shape[2], student.logits.shape[3])
        known = counted(target, grid)
        if self.options.void:
            known = torch.ones_like(known)
        of_student, of_teacher = (self._residuals(outputs, known) for outputs in (student, teacher))
        gaps = [(s - t.detach()).square() for s, t in zip(of_student, of_teacher, strict=True)]
        z_t = to_grid(teacher.logits.detach().float(), grid)
        shares, kept = self._shares(student.logits.float(), known)
        goal, _ = self._shares(z_t, known)
        gap = (shares @ shares.mT - goal @ goal.mT).square().mean((1, 2))
        return {"dsd_pixel": masked_mean(torch.stack(gaps).mean(0), known), "dsd_category": masked_mean(gap, kept)}

    def _residuals(self, outputs: Outputs, known: Tensor) -> list[Tensor]:
        """Return R of each pair of layers, (B, h, w), 0 where void."""
        grid = (known.shape[1], known.shape[2])
        layers = [*(outputs.taps[tap] for tap in self.options.taps), outputs.logits]
        energy = [to_grid(layer.float().square().mean(1, keepdim=True), grid)[:, 0] for layer in layers]
        maps = [_unit(q * known) for q in energy]
        # Maps that agree but for rounding have no residual, and rounding is not to be blown up to one.
        return [_unit(m - n, 1e-4) for n, m in combinations(maps, 2)]

    def _shares(self, logits: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return P, (B, K, cells), 0 where void, and (B,) 1 for pictures with a cell that counts."""
        weight = F.avg_pool2d(known[:, None], 2, ceil_mode=True)
        mean = F.avg_pool2d(logits * known[:, None], 2, ceil_mode=True) / weight.clamp_min(1e-6)
        valid = (weight > 0).flatten(2)
        # A finite floor: a picture that is void throughout must not become NaN.
        scores = (mean.flatten(2) / self.options.temperature).masked_fill(~valid, -1e30)
        return scores.softmax(2) * valid, valid[:, 0].any(1).float()


def _unit(maps: Tensor, least: float = 1e-6) -> Tensor:
    """Divide (B, h, w) by its length over the cells, or by `least` where that is more."""
    return F.normalize(maps.flatten(1), eps=least).view_as(maps)
