"""MGD, masked generative distillation: the student's feature, with holes, must generate the teacher's.

Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022 (arXiv 2205.01529).

    M          (B, 1, h, w), 0 where a uniform draw exceeds 1 - r, else 1;  r = 0.75
    G(x)       = W_2 * relu(W_1 * x + b_1) + b_2                         3x3 convolutions, teacher's channels
    mgd        1/B sum over pictures, channels and cells of (F_t - G(align(F_s) M))^2

Published for segmentation (the authors' seg/configs/distillers/mgd): weight 2e-5, r = 0.75, on the backbone's last
stage, crops of 512x512 at stride 8, 2048 channels. The sum is not a mean: it is 8.4 million of the mean over channels
and cells, which so has weight 168. For C channels on n cells, 168 / (C n) is as much: with 512 on the 192 cells of a
crop of 96x128, where 2e-5 gave 1.5% of the gradient of cross entropy at the first step, 0.0017. It is also a square:
a teacher whose features are twice as large asks for a quarter.

    align      a 1x1 convolution where the channels differ, and none where they do not, as theirs        KNOWN
    void       neither seen by G nor generated; the mean over the other cells stands for them, so that
               the value does not shrink; `void` counts it, as there                                     CHOSEN
    logits     their segmentation runs add CWD on the logits (weight 3, T = 4): `--method mgd+cwd` with
               `loss.cwd.on = "logits"`                                                                  KNOWN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lfd.config import within
from lfd.losses.common import DistillLoss, counted, masked_mean, to_grid
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class MGDOptions:
    """Options of MGD, [loss.mgd].

    Attributes:
        tap: Feature that is generated.
        mask_ratio: r, share of the cells that are hidden.
        void: Count void pixels too, as the published code does.
    """

    tap: str = "stage4"
    mask_ratio: float = 0.75
    void: bool = False

    def __post_init__(self) -> None:
        within("loss.mgd.mask_ratio", self.mask_ratio, 0, 0.99)  # at 1 the student would be hidden altogether


def two_convolutions(channels: int) -> nn.Module:
    """Return MGD's generator, (B, C, h, w) to the same shape."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


class MaskedGenerator(nn.Module):
    """Generates the teacher's feature from the student's with random cells hidden.

    Args:
        student: Channels of the student's feature.
        teacher: Channels of the teacher's.
        mask_ratio: Share of the cells that are hidden.
        generator: Maps the teacher's channels to themselves.
    """

    def __init__(self, student: int, teacher: int, mask_ratio: float, generator: nn.Module) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.align = nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)
        self.generator = generator

    def forward(self, feature: Tensor, known: Tensor) -> Tensor:
        """Map the student's (B, C_s, h, w) to (B, C_t, h, w) float32; void cells, `known` 0, are hidden as well."""
        shown = torch.rand_like(known) <= 1 - self.mask_ratio
        generated: Tensor = self.generator(self.align(feature) * (shown * known)[:, None])
        return generated.float()


def generation_error(generated: Tensor, goal: Tensor, known: Tensor) -> Tensor:
    """Return the squared error of a picture, summed over channels and cells; the mean over pictures.

    Args:
        generated: (B, C, h, w).
        goal: (B, C, h, w).
        known: (B, h, w), 0 for void; the mean over the other cells stands for them.
    """
    error = (generated - goal).square().sum(1)
    return masked_mean(error, known) * (error.shape[1] * error.shape[2])


class MGD(DistillLoss):
    """Generation of the teacher's feature from the student's masked one."""

    parts: ClassVar[tuple[str, ...]] = ("mgd",)
    Options: ClassVar[type[Any]] = MGDOptions

    @classmethod
    def needs(cls, options: MGDOptions) -> tuple[str, ...]:
        """Return the feature that is generated."""
        return (options.tap,)

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: MGDOptions = MGDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        channels = teacher[options.tap].channels
        self.generate = MaskedGenerator(
            student[options.tap].channels, channels, options.mask_ratio, two_convolutions(channels)
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"mgd": scalar}; see `lfd.losses.DistillLoss`."""
        feature = student.taps[self.options.tap]
        grid = (feature.shape[2], feature.shape[3])
        known = counted(target, grid)
        if self.options.void:
            known = torch.ones_like(known)
        goal = to_grid(teacher.taps[self.options.tap].detach().float(), grid)
        return {"mgd": generation_error(self.generate(feature, known), goal, known)}
