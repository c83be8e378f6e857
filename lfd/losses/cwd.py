"""CWD: Shu, Liu, Gao, Yan, Shen, "Channel-wise knowledge distillation for dense prediction", ICCV 2021, section 3.2.

    phi(y_c)_i = exp(y_ci / T) / sum_j exp(y_cj / T)                a channel's distribution over positions i
    L = T^2 / C sum_c sum_i phi(y^t_c)_i log(phi(y^t_c)_i / phi(y^s_c)_i),   T = 4,   mean over pictures

y are the logits (part `cwd_logit`) or the features before the classifier (`cwd_fea`).

Published: weight 3 on logits and 50 on features, each by itself (paper; the authors' exp_cwd.sh runs logits
alone); the CIRKD repository's train_cwd.sh, whose tables are the ones people compare with, takes both, beside
KD of weight 1 (`--method kd+cwd`) and SKD's adversarial term.

Adapter: where the student's features have other channels, a 1x1 convolution without bias takes them to the
teacher's, as in the CIRKD repository; equal channels have none there, nor here. The authors' code has always
1x1 convolution, batch norm and ReLU. C is the number of channels that are compared, as in the paper: the CIRKD
code divides by the student's instead, which makes its `cwd_fea` larger by C_t / C_s where an adapter is used.

Void positions are left out of both softmaxes, and pictures without any other of the mean: CHOSEN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lfd.config import among, within
from lfd.losses.common import DistillLoss, counted, kl_per_pixel, masked_mean, to_grid
from lfd.taps import Outputs, TapInfo

PARTS = {"feature": ("cwd_fea",), "logits": ("cwd_logit",), "both": ("cwd_fea", "cwd_logit")}
"""The parts that each value of `on` calls for."""

NOWHERE = -1e30
"""Logit of a void position: its probability is exactly 0, and differences of two such logits stay finite."""


@dataclass(frozen=True)
class CWDOptions:
    """Options of CWD, [loss.cwd].

    Attributes:
        on: What is compared: `feature`, `logits` or `both`.
        tap: The feature.
        temperature: T.
        void: Count void positions too, as the published code does.
    """

    on: str = "both"
    tap: str = "deep"
    temperature: float = 4.0
    void: bool = False

    def __post_init__(self) -> None:
        among("loss.cwd.on", self.on, PARTS)
        within("loss.cwd.temperature", self.temperature, 0.01, 1000)


class CWD(DistillLoss):
    """KL divergence between each channel's distributions over positions, on the student's grid."""

    parts: ClassVar[tuple[str, ...]] = PARTS["both"]
    Options: ClassVar[type[Any]] = CWDOptions
    serves: ClassVar[Mapping[str, tuple[str, ...]]] = {"tap": ("cwd_fea",)}

    @classmethod
    def needs(cls, options: CWDOptions) -> tuple[str, ...]:
        """Return the feature, unless logits alone are compared."""
        return () if options.on == "logits" else (options.tap,)

    @classmethod
    def active(cls, options: CWDOptions) -> tuple[str, ...]:
        """Return the parts that `on` calls for."""
        return PARTS[options.on]

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: CWDOptions = CWDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        self.adapter: nn.Module = nn.Identity()
        for tap in self.needs(options):
            if student[tap].channels != teacher[tap].channels:
                self.adapter = nn.Conv2d(student[tap].channels, teacher[tap].channels, 1, bias=False)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"cwd_fea", "cwd_logit"}, or the one that `on` names; see `lfd.losses.DistillLoss`."""
        o, found = self.options, {}
        if o.on != "logits":
            found["cwd_fea"] = self._divergence(self.adapter(student.taps[o.tap]), teacher.taps[o.tap], target)
        if o.on != "feature":
            found["cwd_logit"] = self._divergence(student.logits, teacher.logits, target)
        return found

    def _divergence(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return L between maps (B, C, h, w) and (B, C, h', w')."""
        grid = (student.shape[2], student.shape[3])
        known = counted(target, grid).flatten(1)
        if self.options.void:
            known = known.new_ones(known.shape)
        void = known[:, None] == 0
        # (B, hw, C, 1): positions where `kl_per_pixel` has classes.
        s, t = (
            maps.float().flatten(2).masked_fill(void, NOWHERE).transpose(1, 2)[..., None]
            for maps in (student, to_grid(teacher, grid).detach())
        )
        kl = kl_per_pixel(t, s, self.options.temperature)
        return masked_mean(kl.mean((1, 2)), known.amax(1))
