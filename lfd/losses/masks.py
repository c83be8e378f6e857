"""LFD's masks: which pixels and which classes matter, read off the deep logits. None carries a gradient.

p = softmax of the deep logits, t teacher, s student; all equations are CHOSEN (the abstract demands
masks made from deep logits, and names no formula).

Spatial, m_i by kind, then M_i = b + (1 - b) clip(m_i / mean m, 0, c), b = 0.5, c = 5, and 1 where mean m = 0:

    disagreement          KL(p_t,i || p_s,i)                                           the default
    confidence            max_k p_t,ik
    certainty             1 - H(p_t,i) / log K
    gap                   max(0, p_t,i[y_i] - p_s,i[y_i])                             needs labels
    disagreement_correct  KL(p_t,i || p_s,i) [argmax p_t,i = y_i]                     needs labels
    uniform               M_i = 1

Class, e_k by kind, then w_k <- 0.99 w_k + 0.01 clip(e_k / mean of e over the classes present, 0.5, 2),
absent classes untouched; w begins at 1:

    dice      1 - Dice_k of p_s,  Dice_k = 2 sum_i p_ik y_ik / (sum_i p_ik + sum_i y_ik)   the default
    kl        mean of KL(p_t,i || p_s,i) over the cells where argmax p_t,i = k         no labels needed
    presence  w_k = 1 if the teacher sees class k in the batch, else 0.5; no average   no labels needed
    gate      e_k of dice, but w multiplies the auxiliary head's logits, not its cross entropy
    uniform   w_k = 1
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.distributed import all_sum
from lfd.losses.common import IGNORE, UNKNOWN, counted, kl_per_pixel, overall_mean, to_cells

SPATIAL = ("disagreement", "confidence", "certainty", "gap", "disagreement_correct", "uniform")
CLASS = ("dice", "kl", "presence", "gate", "uniform")


def spatial_evidence(kind: str, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Return m, (B, h, w).

    Args:
        kind: One of SPATIAL.
        student: Deep logits, (B, K, h, w).
        teacher: Deep logits on the same grid.
        target: (B, H, W) int64. An unlabelled cell has m = 0 for `gap`, and is taken for correct by
            `disagreement_correct`.
    """
    with torch.no_grad():
        if kind == "uniform":
            return torch.ones_like(student[:, 0], dtype=torch.float32)
        if kind == "confidence":
            return F.softmax(teacher.float(), 1).amax(1)
        if kind == "certainty":
            log_t = F.log_softmax(teacher.float(), 1)
            return 1 + (log_t.exp() * log_t).sum(1) / math.log(max(2, teacher.shape[1]))
        cells = to_cells(target, (student.shape[2], student.shape[3]))
        known = cells < IGNORE
        truth = cells.masked_fill(~known, 0)[:, None]
        if kind == "gap":
            p_t, p_s = (F.softmax(z.float(), 1).gather(1, truth)[:, 0] for z in (teacher, student))
            return (p_t - p_s).clamp_min(0) * known
        m = kl_per_pixel(teacher, student)
        if kind == "disagreement_correct":
            m = m * ((teacher.argmax(1, keepdim=True) == truth)[:, 0] | (cells == UNKNOWN))
        return m


def spatial_mask(
    kind: str, student: Tensor, teacher: Tensor, target: Tensor, base: float = 0.5, clip: float = 5.0
) -> Tensor:
    """Return M, (B, h, w), without gradient; only its contrast matters, since the loss is divided by its sum.

    Args:
        kind: One of SPATIAL.
        student: Deep logits, (B, K, h, w).
        teacher: Deep logits on the same grid.
        target: (B, H, W) int64.
        base: b, the weight that a cell without evidence keeps.
        clip: c, the largest m_i / mean m; the mean is over the cells that count.
    """
    m = spatial_evidence(kind, student, teacher, target)
    if kind == "uniform":
        return m
    mean = overall_mean(m, counted(target, (m.shape[1], m.shape[2])))
    # Without evidence anywhere (gap on film) flat, not b: with b = 0 nothing would be left to train on.
    ratio = torch.where(mean > 1e-8, m / mean.clamp_min(1e-8), 1.0)
    return base + (1 - base) * ratio.clamp(0, clip)


def dice_error(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - Dice of each class and whether it is present, both (K,), over the batches of all processes.

    Args:
        logits: The primary head's, (B, K, h, w).
        target: (B, H, W) int64; cells without a label are left out.
    """
    with torch.no_grad():
        p = F.softmax(logits.float(), 1)
        cells = to_cells(target, (p.shape[2], p.shape[3]))
        known = (cells < IGNORE)[:, None]
        y = F.one_hot(cells.masked_fill(~known[:, 0], 0), p.shape[1]).permute(0, 3, 1, 2) * known
        sums = torch.stack([(v * known).sum((0, 2, 3), dtype=torch.float32) for v in (p * y, p, y)])
        both, predicted, truth = all_sum(sums)
    return 1 - 2 * both / (predicted + truth).clamp_min(1e-6), truth > 0


def kl_by_class(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean KL over the cells that the teacher gives to each class, and whether there are any, both (K,).

    Args:
        student: Deep logits, (B, K, h, w).
        teacher: Deep logits on the same grid.
        target: (B, H, W) int64; void cells are left out.
    """
    with torch.no_grad():
        known = counted(target, (student.shape[2], student.shape[3]))
        seen = F.one_hot(teacher.argmax(1), teacher.shape[1]) * known[..., None]
        kl = kl_per_pixel(teacher, student)[..., None]
        total, count = all_sum(torch.stack([(seen * kl).sum((0, 1, 2)), seen.sum((0, 1, 2))]))
    return total / count.clamp_min(1e-6), count > 0


class ClassMask(nn.Module):
    """The class weights w with their moving average.

    Args:
        kind: One of CLASS.
        num_classes: K.
        bounds: Least and largest weight.
        momentum: Of the moving average.
    """

    weight: Tensor

    def __init__(self, kind: str, num_classes: int, bounds: tuple[float, float], momentum: float) -> None:
        super().__init__()
        self.kind = kind
        self.bounds = bounds
        self.momentum = momentum
        self.register_buffer("weight", torch.ones(num_classes))

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, target: Tensor, parts: int = 1) -> None:
        """Move the weights by a batch.

        Args:
            student: Deep logits, (B, K, h, w).
            teacher: Deep logits on the same grid.
            target: (B, H, W) int64.
            parts: Batches that make up a step; the average moves by that share.
        """
        if self.kind == "uniform":
            return
        if self.kind in ("dice", "gate"):
            error, present = dice_error(student, target)
        else:
            error, present = kl_by_class(student, teacher, target)
        if self.kind == "presence":
            self.weight.copy_(torch.where(present, 1.0, self.bounds[0]))
            return
        mean = (error * present).sum() / present.sum().clamp_min(1)
        wanted = (error / mean.clamp_min(1e-6)).clamp(*self.bounds)
        momentum = self.momentum ** (1 / parts)
        moved = momentum * self.weight + (1 - momentum) * wanted
        # A batch that is not finite fails by its own terms: it must not spoil another process's.
        self.weight.copy_(torch.where(present & moved.isfinite(), moved, self.weight))
