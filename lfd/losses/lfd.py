"""LFD, logit-guided feature distillation.

Yu, Lou, Zhao, Zhang, Mei, "Efficient semantic segmentation via logit-guided feature distillation",
Neural Networks 199 (2026) 108663.

The authors' loss was never released. This is a reconstruction: KNOWN is fixed by the abstract or by
the published part of the trainer, CHOSEN is ours and has a switch.

    z_s, z_t   deep logits                                    F_s, F_t   features before the classifier
    G_s        = adapter(F_s), 1x1 convolution without bias to the teacher's channels               KNOWN
    A          shared head: 3x3 conv-BN-ReLU to 128, 1x1 conv to K; the same A for F_t and G_s      KNOWN

    fea        sum_i M_i mean_c (G_s - F_t)^2 / sum_i M_i over labelled pixels      KNOWN up to the mask
    aux        CE_w(A(F_t), y) + CE_w(A(G_s), y)                                 KNOWN up to the weights
    kl         T^2 mean KL(sg softmax(A(F_t) / T) || softmax(A(G_s) / T)), T = 1,                  KNOWN
               from iteration 1000 of 40 000 on, the head must have learnt first: here from the
               same share of the run on, so that a short run has it too                           CHOSEN

M and w are the spatial and the class masks of `lfd.losses.masks`: masks CHOSEN, their use KNOWN.
Neither carries a gradient, nor does the teacher. Adapter and A are trained with the student and thrown
away after training.

Grids are matched by the centres of their cells, also for networks whose logits are resized with aligned
corners. Where no picture has a label, and the teacher's are not taken for them (`distill.unlabelled`), only
kl trains A, and nothing anchors it: prefer `aux` and `kl` of weight 0 then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lfd.config import among, within
from lfd.errors import UsageError
from lfd.losses.common import DistillLoss, counted, cross_entropy, kl_per_pixel, masked_mean, to_cells, to_grid
from lfd.losses.masks import CLASS, SPATIAL, ClassMask, spatial_mask
from lfd.taps import Outputs, TapInfo


@dataclass(frozen=True)
class LFDOptions:
    """Options of LFD, [loss.lfd]. Each default is CHOSEN.

    Attributes:
        spatial_mask: Kind of M, see `lfd.losses.masks`.
        mask_base: b of M, the weight that a cell without evidence keeps.
        mask_clip: c of M, the largest ratio to the mean.
        class_mask: Kind of w, see `lfd.losses.masks`.
        class_bounds: Least and largest w.
        class_momentum: Of w's moving average.
        apply_to: Where w applies: to the `shared_head`, to the `student_aux` head of the student, or to `both`.
        shared_head: What trains A: CE on `both` branches, with L_kl training it too; or CE on the `teacher`
            branch alone, with A frozen inside L_kl, so that the student cannot bend the head to itself.
        head_width: Channels of A.
        aux_resolution: Where CE of the head is taken: at the labels' `full` size, or on the `feature` grid with
            the nearest label, which spares two K-channel maps of full size.
        aux_bn: Batch statistics of A: `separate` passes, each domain by its own, or one `joint` pass.
        kl_start: Share of the run after which kl begins.
        kl_temperature: T of kl.
    """

    spatial_mask: str = "disagreement"
    mask_base: float = 0.5
    mask_clip: float = 5.0
    class_mask: str = "dice"
    class_bounds: tuple[float, float] = (0.5, 2.0)
    class_momentum: float = 0.99
    apply_to: str = "shared_head"
    shared_head: str = "both"
    head_width: int = 128
    aux_resolution: str = "full"
    aux_bn: str = "separate"
    kl_start: float = 0.025
    kl_temperature: float = 1.0

    def __post_init__(self) -> None:
        among("loss.lfd.spatial_mask", self.spatial_mask, SPATIAL)
        within("loss.lfd.mask_base", self.mask_base, 0, 1)
        within("loss.lfd.mask_clip", self.mask_clip, 1, 1e6)
        among("loss.lfd.class_mask", self.class_mask, CLASS)
        within("loss.lfd.class_bounds[0]", self.class_bounds[0], 0, 1)
        within("loss.lfd.class_bounds[1]", self.class_bounds[1], 1, 1e6)
        within("loss.lfd.class_momentum", self.class_momentum, 0, 0.999999)
        among("loss.lfd.apply_to", self.apply_to, ("shared_head", "student_aux", "both"))
        among("loss.lfd.shared_head", self.shared_head, ("both", "teacher"))
        within("loss.lfd.head_width", self.head_width, 1, 4096)
        among("loss.lfd.aux_resolution", self.aux_resolution, ("full", "feature"))
        among("loss.lfd.aux_bn", self.aux_bn, ("separate", "joint"))
        within("loss.lfd.kl_start", self.kl_start, 0, 1)
        within("loss.lfd.kl_temperature", self.kl_temperature, 0.01, 1000)
        for key, other, kind in WITHOUT_EFFECT:
            value = getattr(self, key)
            if getattr(self, other) == kind and value != getattr(LFDOptions, key):
                raise UsageError(
                    f"loss.lfd.{key} = {value!r} has no effect with {other} {kind!r}. Fix: leave one of them away"
                )


WITHOUT_EFFECT = (
    ("mask_base", "spatial_mask", "uniform"),
    ("mask_clip", "spatial_mask", "uniform"),
    ("class_momentum", "class_mask", "presence"),
    ("class_momentum", "class_mask", "uniform"),
    ("class_bounds", "class_mask", "uniform"),
    ("apply_to", "class_mask", "uniform"),
)
"""Options that do nothing beside a kind of mask."""


class LFD(DistillLoss):
    """The feature, auxiliary and shared-head terms of LFD.

    Args:
        student: Shapes of the student's outputs, with `deep`.
        teacher: Shapes of the teacher's outputs, with `deep`.
        num_classes: K.
        options: The switches.
    """

    parts: ClassVar[tuple[str, ...]] = ("fea", "aux", "kl")
    Options: ClassVar[type[Any]] = LFDOptions
    serves: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("spatial_mask", "mask_base", "mask_clip"), ("fea",)),
        **dict.fromkeys(("shared_head", "head_width", "aux_bn"), ("aux", "kl")),
        "aux_resolution": ("aux",),
        **dict.fromkeys(("kl_start", "kl_temperature"), ("kl",)),
    }

    @classmethod
    def needs(cls, options: LFDOptions) -> tuple[str, ...]:
        """Return the feature before the classifier."""
        return ("deep",)

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: LFDOptions = LFDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        self.masks_student_aux = options.apply_to != "shared_head"
        channels = teacher["deep"].channels
        self.adapter = nn.Conv2d(student["deep"].channels, channels, 1, bias=False)
        self.head = nn.Sequential(
            nn.Conv2d(channels, options.head_width, 3, padding=1, bias=False),
            nn.BatchNorm2d(options.head_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(options.head_width, num_classes, 1),
        )
        self.class_mask = ClassMask(options.class_mask, num_classes, options.class_bounds, options.class_momentum)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"fea", "aux"} and, once it begins, "kl"; see `lfd.losses.DistillLoss`."""
        o = self.options
        adapted = self.adapter(student.taps["deep"])
        grid = (adapted.shape[2], adapted.shape[3])
        goal = to_grid(teacher.taps["deep"], grid).detach()
        known = counted(target, grid)
        z_s, z_t = (to_grid(o.logits.detach(), grid) for o in (student, teacher))

        mask = spatial_mask(o.spatial_mask, z_s, z_t, target, o.mask_base, o.mask_clip)
        parts = {"fea": masked_mean((adapted.float() - goal.float()).square().mean(1), mask * known)}

        if self.training:
            self.class_mask.update(z_s, z_t, target, self.parts_a_step)
        of_teacher, of_student = self._branches(goal, adapted)
        truth = target if o.aux_resolution == "full" else to_cells(target, grid)
        weighted = o.apply_to != "student_aux"
        parts["aux"] = self._cross_entropy(of_teacher, truth, weighted)
        if o.shared_head == "both":
            parts["aux"] = parts["aux"] + self._cross_entropy(of_student, truth, weighted)
        if progress >= o.kl_start:
            parts["kl"] = masked_mean(kl_per_pixel(of_teacher.detach(), of_student, o.kl_temperature), known)
        return parts

    def student_aux(self, logits: Tensor, target: Tensor, align_corners: bool) -> Tensor:
        """Return the student's own auxiliary loss under the class mask; `logits` (B, K, h, w)."""
        return self._cross_entropy(logits, target, True, align_corners)

    def statistics(self) -> dict[str, Tensor]:
        """Return {"class_weight": w}, or nothing where w is uniform."""
        return {} if self.options.class_mask == "uniform" else {"class_weight": self.class_mask.weight}

    def _branches(self, goal: Tensor, adapted: Tensor) -> tuple[Tensor, Tensor]:
        """Return A(F_t) and A(G_s); with shared_head `teacher`, A is frozen in the second."""
        count = goal.shape[0]
        if self.options.shared_head == "both":
            if self.options.aux_bn == "separate":
                return self.head(goal), self.head(adapted)
            joint = self.head(torch.cat([goal, adapted]))
            return joint[:count], joint[count:]
        frozen = {name: p.detach() for name, p in self.head.named_parameters()}
        if self.options.aux_bn == "separate":
            return self.head(goal), functional_call(self.head, frozen, (adapted,))
        of_teacher = self.head(torch.cat([goal, adapted.detach()]))[:count]
        return of_teacher, functional_call(self.head, frozen, (torch.cat([goal, adapted]),))[count:]

    def _cross_entropy(self, logits: Tensor, target: Tensor, weighted: bool, align_corners: bool = False) -> Tensor:
        if not weighted or self.options.class_mask == "uniform":
            return cross_entropy(logits, target, None, align_corners)
        weight = self.class_mask.weight.clone()  # the buffer moves on before the backward pass
        if self.options.class_mask == "gate":
            return cross_entropy(logits * weight.view(1, -1, 1, 1), target, None, align_corners)
        return cross_entropy(logits, target, weight, align_corners)
