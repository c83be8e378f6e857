"""Random outputs of two networks for the tests of the losses, in torch and as numpy sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from lfd.losses.common import IGNORE, UNKNOWN
from lfd.taps import Outputs, TapInfo

Array = NDArray[np.float64]
SEEDS = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Case:
    """Outputs of a student and a teacher with the features `deep` and `stage2`, and a target."""

    student: Outputs
    teacher: Outputs
    target: Tensor

    @property
    def classes(self) -> int:
        return self.student.logits.shape[1]

    @property
    def shapes(self) -> tuple[dict[str, TapInfo], dict[str, TapInfo]]:
        """What a dry run would have found of both."""
        found = []
        for outputs in (self.student, self.teacher):
            maps = {"logits": outputs.logits, **outputs.taps}
            found.append({name: TapInfo(x.shape[1], (x.shape[2], x.shape[3])) for name, x in maps.items()})
        return found[0], found[1]

    def arrays(self, name: str) -> tuple[Array, Array, NDArray[np.int64]]:
        """Return the student's map, the teacher's on its grid, (B, C, hw), and the labels (B, hw), by numpy."""
        s, t = (o.logits if name == "logits" else o.taps[name] for o in (self.student, self.teacher))
        if s.shape[2:] != t.shape[2:]:
            t = F.interpolate(t, s.shape[2:], mode="bilinear")
        return flat(s), flat(t), labels(self.target, (s.shape[2], s.shape[3]))


def evaluate(loss: nn.Module, case: Case) -> dict[str, float]:
    """Return a loss's terms as numbers."""
    with torch.no_grad():
        found = loss(case.student, case.teacher, case.target, 1.0)
    return {name: float(value) for name, value in found.items()}


def flat(maps: Tensor) -> Array:
    """Return (B, C, hw) in float64."""
    array: Array = maps.detach().double().flatten(2).numpy()
    return array


def labels(target: Tensor, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Return (B, hw): the label nearest to the centre of each cell."""
    rows, columns = (
        np.floor((np.arange(n) + 0.5) * size / n).astype(int) for n, size in zip(grid, target.shape[1:], strict=True)
    )
    return target.numpy()[:, rows][:, :, columns].reshape(len(target), -1)


def make(
    seed: int,
    batch: int = 2,
    classes: int = 5,
    channels: tuple[int, int] = (7, 12),
    grid: tuple[int, int] = (6, 8),
    teacher_grid: tuple[int, int] = (6, 8),
    size: tuple[int, int] = (49, 64),
    void: float = 0.3,
) -> Case:
    """Draw a case; `void` and half of it are the shares of void and of unlabelled pixels."""
    generator = torch.Generator().manual_seed(seed)

    def outputs(width: int, hw: tuple[int, int]) -> Outputs:
        logits, deep, stage2 = (torch.randn(batch, c, *hw, generator=generator) for c in (classes, width, width + 1))
        return Outputs(2 * logits, {"deep": deep, "stage2": stage2}, None)

    student, teacher = outputs(channels[0], grid), outputs(channels[1], teacher_grid)
    # In blocks, so that whole cells and whole nodes are void too.
    blocks = torch.randint(0, classes, (batch, 4, 5), generator=generator)
    chance = torch.rand(batch, 4, 5, generator=generator)
    blocks = blocks.masked_fill(chance < 1.5 * void, UNKNOWN).masked_fill(chance < void, IGNORE)
    target = F.interpolate(blocks[:, None].float(), size, mode="nearest")[:, 0].long()
    return Case(student, teacher, target)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw networks of any channels and grids, down to a single cell, class and picture."""
    side = st.integers(1, 7)
    return make(
        draw(SEEDS),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 6)),
        (draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        (draw(side), draw(side)),
        (draw(side), draw(side)),
        (draw(st.integers(8, 40)), draw(st.integers(8, 40))),
        draw(st.sampled_from([0.0, 0.3, 0.6, 1.0])),
    )


def golden(real: Path) -> tuple[Case, dict[str, float]]:
    """Return the inputs of the CIRKD repository's reference values, and those."""
    refs: Any = np.load(real / "refs" / "losses.npz")
    networks = []
    for who in ("student", "teacher"):
        logits, feature = (torch.from_numpy(refs[f"{who}_{kind}"]) for kind in ("logits", "feature"))
        networks.append(Outputs(logits, {"deep": feature}, None))
    target = torch.from_numpy(refs["target"]).long()
    target[target < 0] = IGNORE
    return Case(*networks, target), {key: float(refs[key]) for key in refs if key.startswith("loss_")}
