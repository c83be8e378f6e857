"""AttnFD, attention-guided feature distillation: features refined by CBAM, normalised, and compared.

Mansourian, Jalali, Ahmadi, Kasaei, "Attention-guided Feature Distillation for Semantic Segmentation", Computer Vision
and Image Understanding (arXiv 2403.05451); CBAM is Woo et al., ECCV 2018, equations 2 and 3.

    M_c(F)     = sigmoid(MLP(mean over cells) + MLP(max over cells))       channels / 16 hidden, ReLU
    M_s(F)     = sigmoid(BN(7x7 convolution of [max_c F, mean_c F]))
    A(F)       = F' M_s(F'),  F' = F M_c(F)
    attnfd     sum over taps of 1/B |n(BN(W A(F_s))) - n(A'(F_t))|_2^2,  n(x) = x / |x|_2

W is a 1x1 convolution without bias to the teacher's channels, made for equal channels too.

Published weight: 2, the default of the authors' train_kd.py and of their command for Pascal VOC, at batch 6.

    taps       theirs: the backbone's last stage, the ASPP's output and the feature before the classifier
               of DeepLabV3+; here `stage4` and `deep`, which every network has                          CHOSEN
    norm       theirs is the length of the whole batch's maps, so the term falls as 1/B; `picture` takes
               each picture's own, and the term is its mean. B and the batch are a process's, and
               one part's of an accumulated step, as on each of their GPUs               KNOWN, with a switch
    A'         theirs is a CBAM that is never trained: the teacher's checkpoint has it, its forward pass
               does not use it. `initial` is that; `plain` the gates without parameters that their cbam.py
               has for a teacher: sigmoid(mean + max)                                    KNOWN, with a switch
    training   here the student's CBAM and W are trained throughout. There the optimiser is given
               convolutions and norms only, which leaves M_c's MLP as it began, and W is trained in
               the first epoch alone, while the student rests                                            CHOSEN
    teacher    evaluated with its own statistics; there it runs in training mode                         CHOSEN
    width      no less than 4 hidden channels in M_c                                                     CHOSEN
    norms      statistics of the counted cells, of all processes; n is each process's own                CHOSEN
    void       outside all means, maxima, filters and lengths; `void` counts it, as there                CHOSEN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.config import among
from lfd.errors import UsageError
from lfd.losses.common import DistillLoss, counted, to_grid
from lfd.losses.masked_norm import MaskedBatchNorm2d
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class AttnFDOptions:
    """Options of AttnFD, [loss.attnfd].

    Attributes:
        taps: Features that are compared.
        teacher: How the teacher's are refined: by a CBAM at its `initial` weights, or by `plain` gates.
        norm: Whose length a map is divided by: the `batch`'s or its `picture`'s.
        void: Count void pixels too, as the published code does.
    """

    taps: tuple[str, ...] = ("stage4", "deep")
    teacher: str = "initial"
    norm: str = "batch"
    void: bool = False

    def __post_init__(self) -> None:
        if not self.taps or len(set(self.taps)) < len(self.taps):
            raise UsageError(f"loss.attnfd.taps = {list(self.taps)}; expected one or more different features")
        among("loss.attnfd.teacher", self.teacher, ("initial", "plain"))
        among("loss.attnfd.norm", self.norm, ("batch", "picture"))


class CBAM(nn.Module):
    """Convolutional block attention: a gate for each channel, then one for each cell.

    Args:
        channels: C.
        reduction: C over the hidden width of the channel gate.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = MaskedBatchNorm2d(1)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Refine (B, C, h, w) float32; cells where `known` (B, h, w) is 0 become 0."""
        mean, largest = over_cells(x, known)
        x = x * torch.sigmoid(self.channel(mean) + self.channel(largest))[:, :, None, None]
        summary = torch.cat(over_channels(x), 1) * known[:, None]  # void looks like the border's padding
        return x * torch.sigmoid(self.norm(self.spatial(summary), known)) * known[:, None]


class PlainGates(nn.Module):
    """CBAM without parameters: each gate is the sigmoid of mean plus maximum."""

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Refine as `CBAM` does."""
        mean, largest = over_cells(x, known)
        x = x * torch.sigmoid(mean + largest)[:, :, None, None]
        largest, mean = over_channels(x)
        return x * torch.sigmoid(mean + largest) * known[:, None]


def over_cells(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum, (B, C) each, of (B, C, h, w) over the cells that count; 0 where none does."""
    weight = known[:, None]
    mean = (x * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1)
    largest = x.masked_fill(weight == 0, -torch.inf).amax((2, 3))
    return mean, torch.where(known.flatten(1).any(1)[:, None], largest, torch.zeros_like(largest))


def over_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return maximum and mean, (B, 1, h, w) each, of (B, C, h, w) over the channels."""
    return x.amax(1, keepdim=True), x.mean(1, keepdim=True)


def frozen(module: nn.Module) -> nn.Module:
    """Turn a module's parameters into buffers: saved and moved with it, never trained."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


class Connector(nn.Module):
    """Refines the student's feature and brings it to the teacher's channels."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.refine = CBAM(student)
        self.project = nn.Conv2d(student, teacher, 1, bias=False)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out")  # as the authors'
        self.norm = MaskedBatchNorm2d(teacher)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Map (B, C_s, h, w) float32 to (B, C_t, h, w)."""
        connected: Tensor = self.norm(self.project(self.refine(x, known)), known)
        return connected


class AttnFD(DistillLoss):
    """Distance of CBAM-refined, normalised features."""

    parts: ClassVar[tuple[str, ...]] = ("attnfd",)
    Options: ClassVar[type[Any]] = AttnFDOptions

    @classmethod
    def needs(cls, options: AttnFDOptions) -> tuple[str, ...]:
        """Return the features that are compared."""
        return options.taps

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: AttnFDOptions = AttnFDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        self.connect = nn.ModuleList(Connector(student[tap].channels, teacher[tap].channels) for tap in options.taps)
        self.refine = nn.ModuleList(
            frozen(CBAM(teacher[tap].channels)) if options.teacher == "initial" else PlainGates()
            for tap in options.taps
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"attnfd": scalar}; see `lfd.losses.DistillLoss`."""
        terms = []
        for tap, connect, refine in zip(self.options.taps, self.connect, self.refine, strict=True):
            feature = student.taps[tap].float()
            grid = (feature.shape[2], feature.shape[3])
            known = counted(target, grid)
            if self.options.void:
                known = torch.ones_like(known)
            with torch.no_grad():
                goal = self._unit(refine(to_grid(teacher.taps[tap].float(), grid), known).float(), known)
            ours = self._unit(connect(feature, known).float(), known)
            terms.append((ours - goal).square().sum() / len(feature))
        return {"attnfd": torch.stack(terms).sum()}

    def _unit(self, maps: Tensor, known: Tensor) -> Tensor:
        """Divide (B, C, h, w) by its length over the cells that count; the others become 0."""
        flat = (maps * known[:, None]).flatten(1)
        return F.normalize(flat.flatten() if self.options.norm == "batch" else flat, dim=-1, eps=1e-6)
