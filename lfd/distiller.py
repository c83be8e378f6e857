"""One training step's forward pass: teacher, student, losses, weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lfd.errors import TrainingError, UsageError, unknown
from lfd.losses import LOSSES, METHODS
from lfd.losses.common import cross_entropy
from lfd.normalize import Normalize
from lfd.spec import Preprocess
from lfd.taps import FeatureTaps, Outputs, dry_run

AUX_WEIGHT = 0.4
"""Weight of the student's own auxiliary head inside the task loss (KNOWN)."""


class StepOutput(NamedTuple):
    """Result of a step.

    Attributes:
        total: Scalar to call backward on.
        parts: Raw terms by name, without gradient, unweighted and unbalanced.
        logits: The student's, (B, K, h, w).
    """

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


def balance(term: Tensor) -> Tensor:
    """Return L / sg(L), in float32: the value 1 with the gradient of log L; L itself near zero."""
    term = term.float()
    size = term.detach().abs()
    return torch.where(size > 1e-8, term / size.clamp_min(1e-8), term)


class Distiller(nn.Module):
    """A student in training, with its losses, their adapters and heads, under a frozen teacher.

    The teacher is kept out of the module tree: it is neither trained, nor saved, nor wrapped.

    Args:
        student: The network to train.
        student_input: Its preprocessing.
        num_classes: K.
        method: A name in `lfd.losses.METHODS`.
        weights: Part name to weight, in place of the method's own.
        teacher: A network with the same classes, its preprocessing, and the type to autocast it to,
            None for float32; None for a method without a teacher.

    Raises:
        UsageError: An unknown method, or a weight for a part that the method has not.
        TrainingError: The method needs a feature that a network does not declare.
    """

    def __init__(
        self,
        student: nn.Module,
        student_input: Preprocess,
        num_classes: int,
        method: str,
        weights: Mapping[str, float] | None = None,
        teacher: tuple[nn.Module, Preprocess, torch.dtype | None] | None = None,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        self.method = METHODS[method]
        for part in weights or {}:
            if part not in self.method.weights:
                raise unknown(f"loss weight of method {method!r}", part, self.method.weights)
        self.weights = {**self.method.weights, **(weights or {})}
        if self.method.losses and teacher is None:
            raise UsageError(f"method {method!r} needs a teacher; give --teacher RUN")
        self.student = student
        self.normalize = Normalize(student_input)
        needed = {name for loss in self.method.losses for name in LOSSES[loss].needs}  # type: ignore[attr-defined]
        self._student_taps = FeatureTaps(student, _paths(student, needed, "student"))
        self._teacher: tuple[FeatureTaps, Normalize, torch.dtype | None] | None = None
        self.losses = nn.ModuleList()
        if teacher is not None and self.method.losses:
            network, teacher_input, amp = teacher
            network.eval().requires_grad_(False)
            self._teacher = (FeatureTaps(network, _paths(network, needed, "teacher")), Normalize(teacher_input), amp)
            shapes = [dry_run(taps, student_input.size_hw) for taps in (self._student_taps, self._teacher[0])]
            for loss in self.method.losses:
                self.losses.append(LOSSES[loss](shapes[0], shapes[1], num_classes))

    def forward(self, image: Tensor, target: Tensor, progress: float = 1.0) -> StepOutput:
        """Run a step.

        Args:
            image: (B, 3, H, W) BGR uint8.
            target: (B, H, W) int64, `lfd.losses.common.IGNORE` for void.
            progress: Share of the run that is done, in [0, 1].
        """
        student = self._student_taps(self.normalize(image))
        terms = {"task": cross_entropy(student.logits, target)}
        if student.aux is not None:
            terms["task"] = terms["task"] + AUX_WEIGHT * cross_entropy(student.aux, target)
        if self._teacher is not None:
            teacher = self._teach(image)
            for loss in self.losses:
                terms.update(loss(student, teacher, target, progress))
        total = terms["task"].new_zeros(())
        for name, term in terms.items():
            total = total + self.weights[name] * (balance(term) if name in self.method.balanced else term)
        return StepOutput(total, {name: term.detach() for name, term in terms.items()}, student.logits)

    @torch.no_grad()
    def _teach(self, image: Tensor) -> Outputs:
        assert self._teacher is not None  # noqa: S101
        taps, normalize, amp = self._teacher
        with torch.autocast(image.device.type, amp, enabled=amp is not None):
            outputs = taps(normalize.to(image.device)(image))
        # The student may run in another precision than the teacher: losses and heads get float32.
        return Outputs(outputs.logits.float(), {name: tap.float() for name, tap in outputs.taps.items()}, None)


def _paths(model: nn.Module, needed: set[str], role: str) -> dict[str, str]:
    declared: dict[str, str] = getattr(model, "taps", {})
    for name in needed:
        if name not in declared:
            raise TrainingError(
                f"the {role} {type(model).__name__} declares no feature {name!r}, which the method needs; "
                f"it declares {', '.join(declared) or 'none'}"
            )
    return {name: declared[name] for name in needed}
