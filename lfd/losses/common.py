"""What the losses share: void pixels, grids, and the Kullback-Leibler divergence per pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.taps import Outputs

IGNORE = 255
"""Void in the targets given to losses, whatever the data set's own value."""


class DistillLoss(nn.Module, ABC):
    """What every distillation loss is."""

    needs: ClassVar[tuple[str, ...]]
    """Feature names that it reads from both networks."""

    parts: ClassVar[tuple[str, ...]]
    """Names of the scalars it returns; each has a weight in the configuration."""

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the raw terms.

        Args:
            student: Of the student, with gradient.
            teacher: Of the teacher, without.
            target: (B, H, W) int64 label values, `IGNORE` for void.
            progress: Share of the run that is done, in [0, 1].

        Returns:
            Part name to a scalar; a part that is not active yet may be left out.
        """


def to_grid(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly to another grid; itself when it fits already."""
    if (maps.shape[2], maps.shape[3]) == size_hw:
        return maps
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=False)


def labelled(target: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return (B, h, w) float, 1 where a grid cell counts for distillation, 0 where it is void.

    A cell takes the label nearest to its centre. A picture without a single label (unlabelled film)
    counts everywhere: there is no void in it, only nothing known.
    """
    cells = F.interpolate(target[:, None].float(), size_hw, mode="nearest-exact")[:, 0]
    known = (cells != IGNORE).float()
    unlabelled = (target == IGNORE).flatten(1).all(1)
    return torch.where(unlabelled[:, None, None], torch.ones_like(known), known)


def kl_per_pixel(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(p_t || p_s) over classes, (B, h, w), in nats, times T^2.

    Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, section 2: the
    factor T^2 keeps the gradient's size when the temperature changes. In float32: sums over 19
    classes lose too much in half precision.
    """
    log_t = F.log_softmax(teacher_logits.float() / temperature, 1)
    log_s = F.log_softmax(student_logits.float() / temperature, 1)
    return (log_t.exp() * (log_t - log_s)).sum(1) * temperature**2


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return sum(w v) / sum(w); 0 with a zero gradient where all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


def cross_entropy(logits: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy over labelled pixels, 0 when there are none.

    Args:
        logits: (B, K, h, w), resized bilinearly to the target.
        target: (B, H, W) int64, IGNORE for void.
        class_weight: (K,), normalised by the sum of the weights of the pixels.
    """
    full = to_grid(logits.float(), (target.shape[1], target.shape[2]))
    total = F.cross_entropy(full, target, class_weight, ignore_index=IGNORE, reduction="sum")
    known = target[target != IGNORE]
    norm = known.numel() if class_weight is None else class_weight[known].sum()
    return total / max(float(norm), 1e-6)
