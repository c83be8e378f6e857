"""What the losses share: void pixels, grids, means, and the Kullback-Leibler divergence per pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lfd.distributed import all_sum, share
from lfd.taps import Outputs

IGNORE = 255
"""In the targets given to losses, whatever the data set's own value: void, or beside the picture. Counts nowhere."""

UNKNOWN = 256
"""Likewise: part of a picture that has no labels. There is nothing to supervise, but it is distilled."""


@dataclass(frozen=True)
class NoOptions:
    """Of a loss that has nothing to choose."""


class DistillLoss(nn.Module, ABC):
    """What every distillation loss is; built as `Loss(student_shapes, teacher_shapes, num_classes, options)`."""

    parts: ClassVar[tuple[str, ...]]
    """Names of the scalars it may return, unlike any other loss's; each has a weight in the configuration."""

    Options: ClassVar[type[Any]] = NoOptions
    """Frozen dataclass of what [loss.NAME] may set; checks its own ranges."""

    serves: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Option to the parts that it is for: set while those have weight 0, it would have no effect."""

    together: ClassVar[tuple[str, ...]] = ()
    """Parts that are of use only together, where the options call for them: a critic, and who is to deceive it."""

    needs_labels: ClassVar[bool] = False
    """Whether a picture without any class says nothing to it."""

    options: Any
    """Its Options."""

    parts_a_step = 1
    """Calls that make up an optimiser step; a moving average moves by that share at each."""

    masks_student_aux = False
    """Whether the student's own auxiliary head is trained under `student_aux` in place of cross entropy."""

    @classmethod
    def needs(cls, options: Any) -> tuple[str, ...]:
        """Return the names of the features that it reads from both networks, none by default."""
        return ()

    @classmethod
    def active(cls, options: Any) -> tuple[str, ...]:
        """Return those of its parts that these options call for, all by default."""
        return cls.parts

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the raw terms.

        Args:
            student: Of the student, with gradient.
            teacher: Of the teacher, without.
            target: (B, H, W) int64 label values, `IGNORE` for void, `UNKNOWN` for unlabelled.
            progress: Share of the run that is done, in [0, 1].

        Returns:
            Part name to a scalar; a part that is not active yet may be left out.
        """

    def student_aux(self, logits: Tensor, target: Tensor, align_corners: bool) -> Tensor:
        """Return the loss of the student's own auxiliary logits, where `masks_student_aux`."""
        raise NotImplementedError

    def statistics(self) -> dict[str, Tensor]:
        """Return what a log should follow beside the terms: name to (K,), one value a class."""
        return {}


def to_grid(maps: Tensor, size_hw: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize (B, C, h, w) bilinearly to another grid; itself when it fits already."""
    if (maps.shape[2], maps.shape[3]) == size_hw:
        return maps
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=align_corners)


def to_cells(target: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return (B, h, w) int64: each cell of a grid takes the label nearest to its centre."""
    if (target.shape[1], target.shape[2]) == size_hw:
        return target
    return F.interpolate(target[:, None].float(), size_hw, mode="nearest-exact")[:, 0].long()


def counted(target: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return (B, h, w) float, 1 where a grid cell counts for distillation, 0 where it is void."""
    return (to_cells(target, size_hw) != IGNORE).float()


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
    """Return this process's share of sum(w v) / sum(w) over all; 0 with a zero gradient where all w are 0."""
    return (values * weights).sum() / share(weights.sum()).clamp_min(1e-6)


def overall_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return sum(w v) / sum(w) over all processes, without gradient; 0 where all w are 0."""
    return all_sum((values * weights).sum()) / all_sum(weights.sum()).clamp_min(1e-6)


def cross_entropy(
    logits: Tensor, target: Tensor, class_weight: Tensor | None = None, align_corners: bool = False
) -> Tensor:
    """Return the mean cross entropy over labelled pixels, 0 when there are none.

    Args:
        logits: (B, K, h, w), resized bilinearly to the target.
        target: (B, H, W) int64, IGNORE for void, UNKNOWN for unlabelled; neither is supervised.
        class_weight: (K,), normalised by the sum of the weights of the pixels.
        align_corners: How the network's logits are resized.
    """
    full = to_grid(logits.float(), (target.shape[1], target.shape[2]), align_corners)
    known = target < IGNORE
    target = target.masked_fill(~known, IGNORE)
    total = F.cross_entropy(full, target, class_weight, ignore_index=IGNORE, reduction="sum")
    # Without indexing by the mask, which would make a GPU wait for its result's size.
    weight = known if class_weight is None else class_weight[target.masked_fill(~known, 0)] * known
    return total / share(weight.sum().float()).clamp_min(1e-6)
