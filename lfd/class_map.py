"""A teacher that knows other classes than the data: several of its classes may stand for one of the data's.

    p(k) = sum of p_t(j) over the teacher's classes j of class k,  z_k = log sum_j exp z_t,j

Classes of the teacher that stand for nothing are left out, and the rest takes their probability. Where one of them is
its first choice it has nothing to say of an unlabelled picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lfd.errors import UsageError, unknown
from lfd.spec import Labels

LEFT_OUT = "left_out"
"""Name of the tap that tells where a teacher's first choice is a class that stands for nothing."""


def match(teacher: Labels, data: Labels, given: Mapping[str, Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Return for each class of the data the positions of the teacher's classes that it stands for.

    Args:
        teacher: The teacher's classes.
        data: The data's.
        given: Class of the data to the teacher's; a class that is not given takes that of its name, in any case.

    Raises:
        UsageError: A name that is no class, a teacher's class that is used twice, or a class of the data without any.
    """
    for name in given:
        if name not in data.names:
            raise unknown("class of the data in distill.classes", name, data.names)
    by_name = {name.casefold(): index for index, name in enumerate(teacher.names)}
    groups: list[tuple[int, ...]] = []
    used: dict[int, str] = {}
    for name in data.names:
        own = [name] if name.casefold() in by_name else []
        group = []
        for wanted in given.get(name, own):
            if wanted.casefold() not in by_name:
                raise unknown(f"class of the teacher in distill.classes.{name}", wanted, teacher.names)
            group.append(by_name[wanted.casefold()])
        if not group:
            raise UsageError(
                f"the teacher has no class for {name!r} of the data; it knows {', '.join(teacher.names)}. "
                f"Fix: --set 'distill.classes.{name}=[\"...\"]'"
            )
        for index in group:
            if index in used:
                raise UsageError(
                    f"the teacher's class {teacher.names[index]!r} stands for {used[index]!r} and for {name!r}; "
                    "expected each to stand for one class of the data. Fix: change distill.classes"
                )
            used[index] = name
        groups.append(tuple(group))
    return tuple(groups)


class Merged(nn.Module):
    """A network whose classes are brought together.

    Attributes:
        taps: The network's own, where they are now, and `left_out`, the largest logit of the classes that stand for
            nothing, (B, 1, h, w), where there are any.
        left_out: Positions of those classes.
        align_corners: The network's.
        multiple: The network's, see `lfd.models.external_outputs.check_input_size`.

    Args:
        network: Returns {"out": (B, K_t, h, w)}.
        num_classes: K_t.
        groups: What `match` returned.
    """

    def __init__(self, network: nn.Module, num_classes: int, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network = network
        self.groups = [list(group) for group in groups]
        used = {index for group in groups for index in group}
        self.left_out = [index for index in range(num_classes) if index not in used]
        self.taps = {name: self.path(path) for name, path in getattr(network, "taps", {}).items()}
        if self.left_out:
            self.taps[LEFT_OUT] = f":{LEFT_OUT}"
        self.align_corners = bool(getattr(network, "align_corners", False))
        self.multiple = int(getattr(network, "multiple", 1))

    def path(self, path: str) -> str:
        """Return where a module of the network is."""
        return f"network{'' if path.startswith((':', '@')) else '.'}{path}" if path else "network"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"out": (B, K, h, w)}, and "left_out": (B, 1, h, w) where classes are left out."""
        logits = self.network(image)["out"].float()
        merged = {"out": torch.stack([torch.logsumexp(logits[:, group], 1) for group in self.groups], 1)}
        if self.left_out:
            merged[LEFT_OUT] = logits[:, self.left_out].amax(1, keepdim=True)
        return merged
