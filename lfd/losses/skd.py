"""SKD: Liu, Chen, Liu, Qin, Luo, Wang, "Structured knowledge distillation for semantic segmentation", CVPR 2019.

Also "Structured knowledge distillation for dense prediction", TPAMI 2020.

Pair-wise, part `skd_pair`, over the n nodes of a picture, each the largest feature of a patch of cells:

    a_ij = f_i . f_j / (|f_i| |f_j|);   L_pair = 1 / n^2 sum_ij (a^s_ij - a^t_ij)^2

Holistic, with the option `holistic`: a critic D, trained with the student, tells the teacher's logits from the
student's, and the student is trained to deceive it. One optimiser steps both, so each part trains one of them only:

    skd_holistic   -mean D(z_s)                                                   trains the student, D is frozen
    skd_critic     mean D(z_s) - mean D(z_t) + 10 mean (|grad D(z')| - 1)^2      `wgan-gp`    trains D, z detached
                   mean max(0, 1 + D(z_s)) + mean max(0, 1 - D(z_t))             `hinge`      likewise
                   z' = u z_t + (1 - u) z_s, u uniform in [0, 1] for each picture

Published: lambda_1 = 10 for pixel-wise KD and for pair-wise, lambda_2 = 0.1 for holistic, in the paper; the authors'
run_train_val.sh has 10 (of a sum over the batch, not a mean), 0.5 and 0.1. KD of weight 10 here is the paper's, and
has ten times the gradient of cross entropy at the first step. The CIRKD repository's train_skd.sh, whose
tables people compare with: KD 1 (`--method kd+skd`), pair-wise 10, adversarial 0.001, critic 0.1, hinge.
The critic had weight 0.1 and an optimiser of its own, SGD at 4e-4 where the student had 1e-2 (the authors; CIRKD: Adam
at 4e-4). Under one SGD the weight 0.1 * 4e-4 / 1e-2 = 0.004 takes the same steps, and is what it has here. At 0.1
itself and a learning rate of 0.02 the scores of `wgan-gp` run away within 20 steps. Under AdamW, whose steps have the
size of the learning rate whatever the gradient's, a weight of the critic alone moves next to nothing.

What differs elsewhere:

- Nodes: 2 x 2 cells as the CIRKD repository has them, with `patch` for others; the authors' code takes half the map,
  2 x 2 nodes in all. The authors' code lets no gradient through the lengths |f|; CIRKD's does, and so does this.
- The paper conditions D on the picture; neither code does, nor does this.
- D's architecture is the codes': four spectrally normalised 4x4 convolutions of stride 2, self-attention after
  the third and the fourth, a 4x4 convolution to the score. It begins with a layer norm: CHOSEN, theirs with a batch
  norm, which ties the pictures of a batch together and so voids the penalty's |grad D| (Gulrajani et al. 2017,
  section 4); it would also need second derivatives of the synchronised norm, which torch has not.
- D sees a grid of 64 to 128 cells a side, resized where it must be (theirs is 65 x 65 for crops of 512): CHOSEN.
- Void cells are no candidates for a node's maximum, nodes of nothing else are in no pair, and the critic sees zeros
  there in both networks' logits: CHOSEN, the codes count them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from lfd.config import among, within
from lfd.losses.common import DistillLoss, counted, masked_mean, to_grid
from lfd.losses.vectors import unit
from lfd.taps import Outputs, TapInfo

PENALTY = 10.0
"""Weight of WGAN-GP's gradient penalty inside the critic's loss, as published."""

CRITIC_SIDE = (64, 128)
"""Least and largest side of the grid that the critic sees; its convolutions need the former."""


@dataclass(frozen=True)
class SKDOptions:
    """Options of SKD, [loss.skd].

    Attributes:
        tap: The feature of the pair-wise part.
        patch: Rows and columns of cells that make up a node. There are n^2 pairs: 2 x 2 of a grid of 64x128 take
            17 MB a picture and network, and a finer grid wants larger patches.
        holistic: The adversarial part: `off`, `wgan-gp` or `hinge`.
        void: Count void cells too, as the published code does.
    """

    tap: str = "deep"
    patch: tuple[int, int] = (2, 2)
    holistic: str = "off"
    void: bool = False

    def __post_init__(self) -> None:
        within("loss.skd.patch[0]", self.patch[0], 1, 4096)
        within("loss.skd.patch[1]", self.patch[1], 1, 4096)
        among("loss.skd.holistic", self.holistic, ("off", "wgan-gp", "hinge"))


class SKD(DistillLoss):
    """Pair-wise similarities of features, on the student's grid, and a critic of the logits."""

    parts: ClassVar[tuple[str, ...]] = ("skd_pair", "skd_holistic", "skd_critic")
    Options: ClassVar[type[Any]] = SKDOptions
    serves: ClassVar[Mapping[str, tuple[str, ...]]] = {"tap": ("skd_pair",), "patch": ("skd_pair",)}
    together: ClassVar[tuple[str, ...]] = ("skd_holistic", "skd_critic")

    @classmethod
    def needs(cls, options: SKDOptions) -> tuple[str, ...]:
        """Return the feature."""
        return (options.tap,)

    @classmethod
    def active(cls, options: SKDOptions) -> tuple[str, ...]:
        """Return the pair-wise part, and with `holistic` the two of the critic."""
        return cls.parts[:1] if options.holistic == "off" else cls.parts

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: SKDOptions = SKDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        self.critic = None if options.holistic == "off" else Critic(num_classes)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"skd_pair"} and, with `holistic`, "skd_holistic" and "skd_critic"; see `lfd.losses.DistillLoss`."""
        tap = self.options.tap
        with torch.autocast(target.device.type, enabled=False):
            found = {"skd_pair": self._pair(student.taps[tap].float(), teacher.taps[tap].float(), target)}
            if self.critic is not None:
                found |= self._holistic(self.critic, student.logits.float(), teacher.logits.float(), target)
        return found

    def _counted(self, target: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, 1, h, w), 1 where a cell counts."""
        known = counted(target, grid)[:, None]
        return torch.ones_like(known) if self.options.void else known

    def _pair(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return L_pair between features (B, C, h, w) and (B, C', h', w')."""
        grid = (student.shape[2], student.shape[3])
        known = self._counted(target, grid)
        patch = (min(self.options.patch[0], grid[0]), min(self.options.patch[1], grid[1]))
        there = F.max_pool2d(known, patch, ceil_mode=True)
        apart = _similarities(student, known, patch) - _similarities(to_grid(teacher, grid).detach(), known, patch)
        pairs = there.flatten(1).sum(1).square()  # (B,); a node that is not there has similarity 0 to every other
        return masked_mean(apart.square().sum((1, 2)) / pairs.clamp_min(1), pairs)

    def _holistic(self, critic: nn.Module, student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the two adversarial parts of logits (B, K, h, w) and (B, K, h', w')."""
        grid = (student.shape[2], student.shape[3])
        known = self._counted(target, grid)
        there = known.flatten(1).amax(1)  # (B,): a picture that is void altogether teaches neither
        least, largest = CRITIC_SIDE
        seen = (min(max(grid[0], least), largest), min(max(grid[1], least), largest))
        fake, real = (to_grid(logits * known, seen) for logits in (student, to_grid(teacher, grid).detach()))

        frozen = {name: p.detach() for name, p in critic.named_parameters()}
        deceived = masked_mean(-functional_call(critic, frozen, (fake,)), there)
        fake = fake.detach()
        of_fake, of_real = critic(torch.cat([fake, real])).chunk(2)
        if self.options.holistic == "hinge":
            judged = masked_mean(F.relu(1 + of_fake) + F.relu(1 - of_real), there)
        else:
            judged = masked_mean(of_fake - of_real + PENALTY * gradient_penalty(critic, fake, real), there)
        return {"skd_holistic": deceived, "skd_critic": judged}


def _similarities(feature: Tensor, known: Tensor, patch: tuple[int, int]) -> Tensor:
    """Return a, (B, n, n), of features (B, C, h, w) whose cells count where `known` (B, 1, h, w)."""
    lowest = torch.finfo(feature.dtype).min
    nodes = F.max_pool2d(feature.masked_fill(known == 0, lowest), patch, ceil_mode=True)
    nodes = nodes.masked_fill(F.max_pool2d(known, patch, ceil_mode=True) == 0, 0)
    directions = unit(nodes, 1).flatten(2)
    return directions.transpose(1, 2) @ directions


def gradient_penalty(critic: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
    """Return (|grad D(z')| - 1)^2 for each picture, (B,), at z' = u real + (1 - u) fake.

    Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved training of Wasserstein GANs", NeurIPS 2017, eq. 3.

    Args:
        critic: Maps (B, K, h, w) to (B,), each picture by itself.
        fake: (B, K, h, w) without gradient.
        real: Likewise.
    """
    share = torch.rand(len(fake), 1, 1, 1, device=fake.device)
    with torch.enable_grad():
        between = torch.lerp(fake, real, share).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # A vector norm's gradient is 0 where the vector is, that of a square root's is infinite.
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (length - 1).square()


class Critic(nn.Module):
    """Scores logits (B, K, h, w), h and w at least 64, by a number a picture, (B,): the mean over its map of scores.

    Args:
        num_classes: K.
        width: Channels of the first convolution.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        channels = (num_classes, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = [nn.GroupNorm(1, num_classes)]
        for index, (before, after) in enumerate(pairwise(channels)):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(0.1)]
            if index >= 2:
                layers.append(SelfAttention(after))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4))

    def forward(self, logits: Tensor) -> Tensor:
        """Return the scores."""
        score: Tensor = self.layers(logits)
        return score.mean((1, 2, 3))


class SelfAttention(nn.Module):
    """Zhang, Goodfellow, Metaxas, Odena, "Self-attention generative adversarial networks", ICML 2019, section 3.

    Args:
        channels: C, at least 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + gamma sum_j softmax_j(query_i . key_j) value_j, (B, C, h, w)."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attention = F.softmax(query.transpose(1, 2) @ key, 2)
        gathered: Tensor = value @ attention.transpose(1, 2)
        return x + self.gamma * gathered.view_as(x)
