"""One training step's forward pass: teacher, student, losses, weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.balance import Balance
from lfd.class_map import LEFT_OUT
from lfd.errors import UsageError
from lfd.losses import LOSSES
from lfd.losses.common import IGNORE, UNKNOWN, DistillLoss, cross_entropy, to_grid
from lfd.losses.kd import KD
from lfd.methods import Plan
from lfd.normalize import Normalize
from lfd.quantize.student import find
from lfd.spec import Preprocess
from lfd.taps import FeatureTaps, Outputs, dry_run

SECOND = "second"
"""Name of the second teacher's term."""
AUX_WEIGHT = 0.4
"""Weight of the student's own auxiliary head inside the task loss (KNOWN)."""


class StepOutput(NamedTuple):
    """Result of a step.

    Attributes:
        total: Scalar to call backward on.
        parts: Raw terms by name, without gradient, unweighted and unbalanced; this process's share.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Teacher:
    """A frozen network and how it looks at pictures.

    Attributes:
        network: With the same classes as the student.
        preprocess: Its own input. Where its size differs from the student's, it sees the student's picture
            scaled to its own, so that things have the size it knows.
        amp: Autocast type, None for float32.
        taps: Feature name to path, beside and in place of those that it declares.
        labels: Its classes stand for the labels of pictures that have none.
    """

    network: nn.Module
    preprocess: Preprocess
    amp: torch.dtype | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    labels: bool = True

    @property
    def network_taps(self) -> Mapping[str, str]:
        """What the network declares."""
        declared: Mapping[str, str] = getattr(self.network, "taps", {})
        return declared


class Distiller(nn.Module):
    """A student in training, with its losses, their adapters and heads, under a frozen teacher.

    The teacher is kept out of the module tree: it is neither trained, nor saved, nor wrapped.

    Args:
        student: The network to train.
        student_input: Its preprocessing.
        num_classes: K.
        plan: The losses with their options and weights, see `lfd.methods.plan`.
        teacher: None for a method without a teacher.
        parts: Calls that make up an optimiser step, where its batch is accumulated.
        taps: Feature name to path in the student, beside and in place of those that it declares.
        second: Another teacher, on the student's grid and by KD alone, and its weight.

    Raises:
        UsageError: A tap that no loss reads, or one that a network does not declare, or an option that this student
            has no use for.
    """

    def __init__(
        self,
        student: nn.Module,
        student_input: Preprocess,
        num_classes: int,
        plan: Plan,
        teacher: Teacher | None = None,
        parts: int = 1,
        taps: Mapping[str, str] | None = None,
        second: tuple[Teacher, float] | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.weights = {**plan.weights, **({SECOND: second[1]} if second else {})}
        self.student = student
        self.align_corners = bool(getattr(student, "align_corners", False))
        self.normalize = Normalize(student_input)
        self.balance = Balance(plan.balance, plan.balanced, parts)
        needed = {tap for name, options in plan.losses.items() for tap in LOSSES[name].needs(options)}
        self._student_taps = FeatureTaps(student, _paths(student, needed, "student", taps or {}))
        self._teacher: _Bound | None = None
        self._second = _bind(second[0], {}, student_input.size_hw) if second else None
        self._alike = KD({}, {}, num_classes)
        self.losses = nn.ModuleList()
        self._aux_loss: tuple[DistillLoss, ...] = ()  # not the module itself: the state would hold it twice
        if teacher is None:
            return
        size_hw = student_input.size_hw
        paths = _paths(teacher.network, needed, "teacher", teacher.taps)
        if LEFT_OUT in teacher.network_taps:
            paths[LEFT_OUT] = teacher.network_taps[LEFT_OUT]
        self._teacher = _bind(teacher, paths, size_hw)
        shapes = dry_run(self._student_taps, size_hw), dry_run(self._teacher.taps, teacher.preprocess.size_hw)
        for name, options in plan.losses.items():
            loss = LOSSES[name](*shapes, num_classes, options)
            loss.parts_a_step = parts
            self.losses.append(loss)
            if loss.masks_student_aux:
                if getattr(student, "aux_classifier", None) is None:
                    raise UsageError(
                        f"loss.{name}.apply_to = {options.apply_to!r}, but the student "
                        f"{type(student).__name__} has no auxiliary head of its own. Fix: apply_to = 'shared_head'"
                    )
                self._aux_loss = (loss,)

    def forward(self, image: Tensor, target: Tensor, progress: float = 1.0, unlabelled: bool = False) -> StepOutput:
        """Run a step.

        Args:
            image: (B, 3, H, W) BGR uint8.
            target: (B, H, W) int64; `lfd.losses.common` has the values for void and unlabelled.
            progress: Share of the run that is done, in [0, 1].
            unlabelled: Some picture has no labels.
        """
        int8 = find(self.student)
        if int8 is not None:
            int8.step(progress)
        student = self._student_taps(self.normalize(image))
        terms: dict[str, Tensor] = {}
        if self._teacher is not None:
            fills = unlabelled and self._teacher.speaks
            if fills or self.losses:
                taught = self._teacher(image)
                if fills:
                    target = torch.where(target == UNKNOWN, self._teacher.labels(taught, target), target)
                for loss in self.losses:
                    terms.update(loss(student, taught, target, progress))
        if self._second is not None:
            terms[SECOND] = self._alike(student, self._second(image), target, progress)["kd"]
        terms = {"task": cross_entropy(student.logits, target, align_corners=self.align_corners), **terms}
        if student.aux is not None:
            terms["task"] = terms["task"] + AUX_WEIGHT * self._student_aux(student.aux, target)
        total = terms["task"].new_zeros(())
        for name, term in terms.items():
            balanced = self.balance(name, term) if name in self.plan.balanced else term
            total = total + self.weights[name] * balanced
        return StepOutput(total, {name: term.detach() for name, term in terms.items()})

    def statistics(self) -> dict[str, Tensor]:
        """Return what the losses want followed: name to (K,), one value a class."""
        losses = cast("Iterable[DistillLoss]", self.losses)
        return {name: value for loss in losses for name, value in loss.statistics().items()}

    def _student_aux(self, logits: Tensor, target: Tensor) -> Tensor:
        if self._aux_loss:
            return self._aux_loss[0].student_aux(logits, target, self.align_corners)
        return cross_entropy(logits, target, align_corners=self.align_corners)


class _Bound(NamedTuple):
    """A teacher, ready to be asked.

    Attributes:
        teacher: The network and its ways.
        taps: Its features.
        normalize: Its input.
        scale: Of its picture over the student's, in height and width.
    """

    teacher: Teacher
    taps: FeatureTaps
    normalize: Normalize
    scale: tuple[float, float]

    @property
    def speaks(self) -> bool:
        """Whether it changes the targets of pictures without labels."""
        return self.teacher.labels or LEFT_OUT in self.teacher.network_taps

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Outputs:
        """Run it on (B, 3, H, W) BGR uint8."""
        image = to_scale(image, self.scale, int(getattr(self.teacher.network, "multiple", 1)))
        amp = self.teacher.amp
        with torch.autocast(image.device.type, amp, enabled=amp is not None):
            outputs = self.taps(self.normalize.to(image.device)(image))
        # The student may run in another precision than the teacher: losses and heads get float32.
        return Outputs(outputs.logits.float(), {name: tap.float() for name, tap in outputs.taps.items()}, None)

    def labels(self, said: Outputs, target: Tensor) -> Tensor:
        """Return what an unlabelled pixel's target is to be, (B, H, W) int64: its class, or `UNKNOWN` as before.

        IGNORE where its first choice is a class that stands for nothing.
        """
        hw, corners = (target.shape[1], target.shape[2]), bool(getattr(self.teacher.network, "align_corners", False))
        logits = to_grid(said.logits, hw, corners)
        best, found = logits.max(1)
        if not self.teacher.labels:
            found = torch.full_like(found, UNKNOWN)
        if LEFT_OUT not in said.taps:
            return found
        return found.masked_fill(to_grid(said.taps[LEFT_OUT], hw, corners)[:, 0] > best, IGNORE)


def _bind(teacher: Teacher, paths: Mapping[str, str], student_hw: tuple[int, int]) -> _Bound:
    """Freeze a teacher and make it ready for pictures of the student's size."""
    teacher.network.eval().requires_grad_(False)
    (h, w), (th, tw) = student_hw, teacher.preprocess.size_hw
    return _Bound(teacher, FeatureTaps(teacher.network, paths), Normalize(teacher.preprocess), (th / h, tw / w))


def to_scale(image: Tensor, scale: tuple[float, float], multiple: int = 1) -> Tensor:
    """Return a picture (B, 3, H, W) scaled in height and width; itself where that changes nothing.

    Args:
        image: The picture.
        scale: Of height and width.
        multiple: Of which the sides are to be multiples: the nearest ones.
    """
    size = [max(1, round(side * by / multiple)) * multiple for side, by in zip(image.shape[2:], scale, strict=True)]
    if size == list(image.shape[2:]):
        return image
    return F.interpolate(image.float(), size, mode="bilinear", antialias=min(scale) < 1)


def _paths(model: nn.Module, needed: set[str], role: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each feature that is needed: as given, else as the network declares it."""
    for name in given:
        if name not in needed:
            reads = ", ".join(sorted(needed)) or "none"
            raise UsageError(
                f"distill.{role}_taps.{name} has no effect: the method reads the features {reads}. Fix: leave it away"
            )
    declared: dict[str, str] = {**getattr(model, "taps", {}), **given}
    for name in sorted(needed):
        if name not in declared:
            raise UsageError(
                f"the {role} {type(model).__name__} declares no feature {name!r}, which the method needs; it declares "
                f"{', '.join(declared) or 'none'}. Fix: --set distill.{role}_taps.{name}=PATH, a module that "
                "`lfd-train inspect` lists"
            )
    return {name: declared[name] for name in needed}
