"""LFD, logit-guided feature distillation.

Yu, Lou, Zhao, Zhang, Mei, "Efficient semantic segmentation via logit-guided feature distillation",
Neural Networks 199 (2026) 108663.

The authors' loss was never released. This is a reconstruction: KNOWN is fixed by the abstract or by
the published part of the trainer, CHOSEN is ours.

    z_s, z_t   deep logits; p = softmax(z)                    F_s, F_t   features before the classifier
    G_s        = adapter(F_s), 1x1 convolution without bias to the teacher's channels               KNOWN
    A          shared head: 3x3 conv-BN-ReLU to 128, 1x1 conv to K; the same A for F_t and G_s      KNOWN

    spatial mask   m_i = KL(p_t,i || p_s,i),  M_i = b + (1 - b) clip(m_i / mean m, 0, 5), b = 0.5   CHOSEN
    fea            sum_i M_i mean_c (G_s - F_t)^2 / sum_i M_i over labelled pixels      KNOWN up to the mask
    class mask     e_c = 1 - Dice_c of p_s,  w_c = clip(e_c / mean e over present, 0.5, 2),
                   moving average 0.99, absent classes untouched                                    CHOSEN
    aux            CE_w(A(F_t), y) + CE_w(A(G_s), y)                                KNOWN up to the weights
    kl             mean KL(sg softmax A(F_t) || softmax A(G_s)), from iteration 1000 of 40000 on    KNOWN;
                   here from the same share of the run on, so that a short run has it too           CHOSEN

Neither mask carries a gradient, nor does the teacher. Adapter and A are trained with the student and
thrown away after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.losses.common import IGNORE, DistillLoss, cross_entropy, kl_per_pixel, labelled, masked_mean, to_grid
from lfd.taps import Outputs, TapInfo


def disagreement_mask(kl: Tensor, known: Tensor, base: float = 0.5, clip: float = 5.0) -> Tensor:
    """Return the spatial mask M, (B, h, w), without gradient.

    Args:
        kl: (B, h, w), how far the two networks are apart in each cell.
        known: (B, h, w), 1 where a cell counts.
        base: b, the weight that a cell without disagreement keeps.
        clip: Largest m_i / mean m.
    """
    m = kl.detach()
    relative = m / masked_mean(m, known).clamp_min(1e-8)
    return base + (1 - base) * relative.clamp(0, clip)


def dice_error(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return e = 1 - Dice and whether each class is present, both (K,), without gradient.

    Dice_c = 2 sum_i p_c,i y_c,i / (sum_i p_c,i + sum_i y_c,i) over labelled cells of the logits' grid.
    """
    k = logits.shape[1]
    with torch.no_grad():
        p = F.softmax(logits.float(), 1)
        cells = F.interpolate(target[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
        known = cells != IGNORE
        y = F.one_hot(cells.masked_fill(~known, 0), k).permute(0, 3, 1, 2) * known[:, None]
        p = p * known[:, None]
        truth = y.sum((0, 2, 3)).float()
        dice = 2 * (p * y).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + truth).clamp_min(1e-6)
    return 1 - dice, truth > 0


class LFD(DistillLoss):
    """The feature, auxiliary and shared-head terms of LFD at their defaults.

    Args:
        student: Shapes of the student's outputs, with `deep`.
        teacher: Shapes of the teacher's outputs, with `deep`.
        num_classes: K.
        width: Channels of the shared head.
        kl_start: Share of the run after which `kl` begins: the head must have learnt first.
        momentum: Of the moving average of the class weights.
    """

    needs: ClassVar[tuple[str, ...]] = ("deep",)
    parts: ClassVar[tuple[str, ...]] = ("fea", "aux", "kl")
    class_weight: Tensor

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        width: int = 128,
        kl_start: float = 0.025,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        channels = teacher["deep"].channels
        self.adapter = nn.Conv2d(student["deep"].channels, channels, 1, bias=False)
        self.head = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, num_classes, 1),
        )
        self.kl_start = kl_start
        self.momentum = momentum
        self.register_buffer("class_weight", torch.ones(num_classes))

    def update_class_weight(self, logits: Tensor, target: Tensor) -> None:
        """Move the class weights towards what the primary head gets wrong in this batch.

        Args:
            logits: The student's, (B, K, h, w).
            target: (B, H, W) int64.
        """
        error, present = dice_error(logits, target)
        if present.any():
            wanted = (error / error[present].mean().clamp_min(1e-6)).clamp(0.5, 2.0)
            moved = self.momentum * self.class_weight + (1 - self.momentum) * wanted
            self.class_weight.copy_(torch.where(present, moved, self.class_weight))

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"fea", "aux"} and, once it begins, "kl"; see `lfd.losses.DistillLoss`."""
        adapted = self.adapter(student.taps["deep"])
        grid = (adapted.shape[2], adapted.shape[3])
        goal = to_grid(teacher.taps["deep"], grid).detach()
        known = labelled(target, grid)

        kl = kl_per_pixel(to_grid(teacher.logits, grid), to_grid(student.logits, grid))
        distance = (adapted.float() - goal.float()).square().mean(1)
        parts = {"fea": masked_mean(distance, disagreement_mask(kl, known) * known)}

        if self.training:
            self.update_class_weight(student.logits, target)
        # Two passes, so that the batch norm normalises each domain by its own statistics.
        of_teacher, of_student = self.head(goal), self.head(adapted)
        weight = self.class_weight.clone()
        parts["aux"] = cross_entropy(of_teacher, target, weight) + cross_entropy(of_student, target, weight)
        if progress >= self.kl_start:
            parts["kl"] = masked_mean(kl_per_pixel(of_teacher.detach(), of_student), known)
        return parts
