"""One training step's forward pass: teacher, student, losses, weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.balance import Balance
from lfd.errors import TrainingError, UsageError, unknown
from lfd.losses import LOSSES, METHODS, read_options
from lfd.losses.common import DistillLoss, cross_entropy
from lfd.normalize import Normalize
from lfd.spec import Preprocess
from lfd.taps import FeatureTaps, Outputs, dry_run

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
    """

    network: nn.Module
    preprocess: Preprocess
    amp: torch.dtype | None = None


class Distiller(nn.Module):
    """A student in training, with its losses, their adapters and heads, under a frozen teacher.

    The teacher is kept out of the module tree: it is neither trained, nor saved, nor wrapped.

    Args:
        student: The network to train.
        student_input: Its preprocessing.
        num_classes: K.
        method: A name in `lfd.losses.METHODS`.
        weights: Part name to weight, in place of the method's own.
        teacher: None for a method without a teacher.
        balance: In place of `detach`, see `lfd.balance`; "" for that.
        options: Loss name to its options, [loss.NAME] of a recipe.
        parts: Calls that make up an optimiser step, where its batch is accumulated.

    Raises:
        UsageError: An unknown method, or a weight, balance or option that the method has no use for.
        TrainingError: The method needs a feature that a network does not declare.
    """

    def __init__(
        self,
        student: nn.Module,
        student_input: Preprocess,
        num_classes: int,
        method: str,
        weights: Mapping[str, float] | None = None,
        teacher: Teacher | None = None,
        balance: str = "",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        parts: int = 1,
    ) -> None:
        super().__init__()
        check_method(method, weights or {}, teacher is not None, balance, options or {})
        self.method = METHODS[method]
        chosen = read_options(self.method, options or {})
        self.weights = {**self.method.weights, **(weights or {})}
        self.student = student
        self.align_corners = bool(getattr(student, "align_corners", False))
        self.normalize = Normalize(student_input)
        self.balance = Balance(balance or "detach", self.method.balanced, parts)
        needed = {name for loss in self.method.losses for name in LOSSES[loss].needs}
        self._student_taps = FeatureTaps(student, _paths(student, needed, "student"))
        self._teacher: tuple[FeatureTaps, Normalize, torch.dtype | None] | None = None
        self.losses = nn.ModuleList()
        self._aux_loss: tuple[DistillLoss, ...] = ()  # not the module itself: the state would hold it twice
        if teacher is None or not self.method.losses:
            return
        (h, w), (th, tw) = student_input.size_hw, teacher.preprocess.size_hw
        self._scale = (th / h, tw / w)
        teacher.network.eval().requires_grad_(False)
        taps = FeatureTaps(teacher.network, _paths(teacher.network, needed, "teacher"))
        self._teacher = (taps, Normalize(teacher.preprocess), teacher.amp)
        shapes = dry_run(self._student_taps, (h, w)), dry_run(taps, (th, tw))
        for name in self.method.losses:
            loss = LOSSES[name](*shapes, num_classes, chosen[name])
            loss.parts_a_step = parts
            self.losses.append(loss)
            if loss.masks_student_aux:
                if getattr(student, "aux_classifier", None) is None:
                    raise UsageError(
                        f"loss.{name}.apply_to = {chosen[name].apply_to!r}, but the student "
                        f"{type(student).__name__} has no auxiliary head of its own. Fix: apply_to = 'shared_head'"
                    )
                self._aux_loss = (loss,)

    def forward(self, image: Tensor, target: Tensor, progress: float = 1.0) -> StepOutput:
        """Run a step.

        Args:
            image: (B, 3, H, W) BGR uint8.
            target: (B, H, W) int64, `lfd.losses.common.IGNORE` for void.
            progress: Share of the run that is done, in [0, 1].
        """
        student = self._student_taps(self.normalize(image))
        terms = {"task": cross_entropy(student.logits, target, align_corners=self.align_corners)}
        if self._teacher is not None:
            teacher = self._teach(image)
            for loss in self.losses:
                terms.update(loss(student, teacher, target, progress))
        if student.aux is not None:
            terms["task"] = terms["task"] + AUX_WEIGHT * self._student_aux(student.aux, target)
        total = terms["task"].new_zeros(())
        for name, term in terms.items():
            total = total + self.weights[name] * (self.balance(name, term) if name in self.method.balanced else term)
        return StepOutput(total, {name: term.detach() for name, term in terms.items()})

    def statistics(self) -> dict[str, Tensor]:
        """Return what the losses want followed: name to (K,), one value a class."""
        losses = cast("Iterable[DistillLoss]", self.losses)
        return {name: value for loss in losses for name, value in loss.statistics().items()}

    def _student_aux(self, logits: Tensor, target: Tensor) -> Tensor:
        if self._aux_loss:
            return self._aux_loss[0].student_aux(logits, target, self.align_corners)
        return cross_entropy(logits, target, align_corners=self.align_corners)

    @torch.no_grad()
    def _teach(self, image: Tensor) -> Outputs:
        assert self._teacher is not None  # noqa: S101
        taps, normalize, amp = self._teacher
        image = to_scale(image, self._scale)
        with torch.autocast(image.device.type, amp, enabled=amp is not None):
            outputs = taps(normalize.to(image.device)(image))
        # The student may run in another precision than the teacher: losses and heads get float32.
        return Outputs(outputs.logits.float(), {name: tap.float() for name, tap in outputs.taps.items()}, None)


def check_method(
    method: str,
    weights: Mapping[str, float],
    has_teacher: bool,
    balance: str,
    options: Mapping[str, Mapping[str, Any]],
) -> None:
    """Refuse what a method has no use for, before anything is loaded; see `Distiller` for the arguments.

    Raises:
        UsageError: An unknown method, no teacher where it needs one, or a weight, balance or option without effect.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    chosen = METHODS[method]
    for part in weights:
        if part not in chosen.weights:
            raise unknown(f"loss weight of method {method!r}", part, chosen.weights)
    if chosen.losses and not has_teacher:
        raise UsageError(f"method {method!r} needs a teacher; give --teacher RUN")
    if has_teacher and not chosen.losses:
        raise UsageError(f"method {method!r} has no use for a teacher. Fix: leave --teacher away, or choose a method")
    if not any({**chosen.weights, **weights}.values()):
        raise UsageError(f"every loss weight of method {method!r} is 0: nothing would be learnt")
    if balance and not chosen.balanced:
        raise UsageError(
            f"distill.balance = {balance!r} has no effect: method {method!r} balances nothing. Fix: leave it away"
        )
    read_options(chosen, options)


def to_scale(image: Tensor, scale: tuple[float, float]) -> Tensor:
    """Return a picture (B, 3, H, W) scaled in height and width; itself at scale 1."""
    if scale == (1.0, 1.0):
        return image
    size = [max(1, round(side * by)) for side, by in zip(image.shape[2:], scale, strict=True)]
    return F.interpolate(image.float(), size, mode="bilinear", antialias=min(scale) < 1)


def _paths(model: nn.Module, needed: set[str], role: str) -> dict[str, str]:
    declared: dict[str, str] = getattr(model, "taps", {})
    for name in needed:
        if name not in declared:
            raise TrainingError(
                f"the {role} {type(model).__name__} declares no feature {name!r}, which the method needs; "
                f"it declares {', '.join(declared) or 'none'}"
            )
    return {name: declared[name] for name in needed}
