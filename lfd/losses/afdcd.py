"""Af-DCD, augmentation-free dense contrastive distillation: masked generation, and contrast inside patches.

Fan, Li, Liu, Song, Yao, "Augmentation-Free Dense Contrastive Knowledge Distillation for Efficient Semantic
Segmentation", NeurIPS 2023 (arXiv 2312.04168).

    X, Y         generated (`lfd.losses.mgd`) and teacher's feature, max-pooled; split into patches of N x N cells and
                 M groups of channels: vectors x_nm, y_nm of cell n and group m
    d(x, y)      = -|x - y|_1 / T,  T = 0.07
    afdcd_fd     MGD's term
    contrast     -1/cells sum_nm log( exp d(x_nm, y_nm) / sum over {nm} and the negatives of exp d(x_nm, y_n'm') )

    negatives    omni      m' != m                    every other group of the patch, the published code's    KNOWN
                 spatial   m' = m, n' != n            other cells of the group
                 channel   m' != m, n' = n            other groups of the cell
                 all       (n', m') != (n, m)         the three together                                    CHOSEN

The paper builds its omni-contrasting out of a spatial and a channel one; what is published as code is one sum alone,
without the vectors of the same group in other cells.

Published weights (fd, contrast), with KD of weight 1 (ADE20K, COCO-Stuff 0.5), on the backbone's last stage:
Cityscapes 2e-6, 0.005, taken here; CamVid 8e-6, 0.01; Pascal VOC 1e-6, 0.005; ADE20K 1e-6, 0.04; COCO-Stuff 5e-6,
0.005 (the authors' train_scripts); train_ocmgd.py's own defaults are 4e-5, 0.001. N = 4, M = 16, pooling 4. As in MGD
the weight of `fd` is one of a sum, over 2048 channels and 64x128 cells there: 34 / (C n) is as much for C channels on n
cells. |x - y|_1 is a sum over the C / M channels of a group, so `contrast` grows with C, but not with the grid.

    pooling      theirs is none on CamVid, whose 45x45 cells they cut to 44x44: `pool = 1`; here the grid is filled up
                 with void to whole windows and patches, and nothing is cut off                             CHOSEN
    groups       channels that M does not divide are filled up with zeros, which adds nothing to d           CHOSEN
    generator    `enhanced`: two blocks and the mean of their outputs, an option of theirs; its script for Cityscapes
                 asks for it, but by a name that their parser does not know                                  KNOWN
    clipping     theirs clips the generator's gradient to a norm of 15; here `optimizer.clip_norm`, of all   CHOSEN
    void         as in MGD, and neither anchor, positive nor negative; `void` counts it, as there            CHOSEN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.config import among, within
from lfd.losses.common import DistillLoss, counted, masked_mean, to_grid
from lfd.losses.mgd import MaskedGenerator, generation_error, two_convolutions
from lfd.taps import Outputs, TapInfo

CONTRASTS = ("omni", "spatial", "channel", "all")


@dataclass(frozen=True)
class AfDCDOptions:
    """Options of Af-DCD, [loss.afdcd].

    Attributes:
        tap: Feature that is generated and contrasted.
        mask_ratio: Share of the cells that are hidden from the generator.
        generator: `plain` or `enhanced`.
        contrast: What the negatives are, one of CONTRASTS.
        temperature: T.
        pool: Side of the max-pooling's window; 1 for none.
        patch: N.
        groups: M.
        void: Count void pixels too, as the published code does.
    """

    tap: str = "stage4"
    mask_ratio: float = 0.75
    generator: str = "plain"
    contrast: str = "omni"
    temperature: float = 0.07
    pool: int = 4
    patch: int = 4
    groups: int = 16
    void: bool = False

    def __post_init__(self) -> None:
        within("loss.afdcd.mask_ratio", self.mask_ratio, 0, 0.99)  # at 1 the student would be hidden altogether
        among("loss.afdcd.generator", self.generator, ("plain", "enhanced"))
        among("loss.afdcd.contrast", self.contrast, CONTRASTS)
        within("loss.afdcd.temperature", self.temperature, 0.001, 1000)
        within("loss.afdcd.pool", self.pool, 1, 64)
        within("loss.afdcd.patch", self.patch, 1, 16)
        within("loss.afdcd.groups", self.groups, 1, 256)


class EnhancedGenerator(nn.Module):
    """Two blocks in a row, each with an output of its own; their mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def convolution() -> nn.Module:
            return nn.Conv2d(channels, channels, 3, padding=1)

        self.first, self.second = convolution(), convolution()
        self.from_first, self.from_second = convolution(), convolution()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        first = F.relu(self.first(x))
        second = F.relu(self.second(first))
        mean: Tensor = (self.from_first(first) + self.from_second(second)) / 2
        return mean


class AfDCD(DistillLoss):
    """Masked generation of the teacher's feature, and contrast of the two inside patches."""

    parts: ClassVar[tuple[str, ...]] = ("afdcd_fd", "afdcd_contrast")
    Options: ClassVar[type[Any]] = AfDCDOptions
    serves: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("contrast", "temperature", "pool", "patch", "groups"), ("afdcd_contrast",)
    )

    @classmethod
    def needs(cls, options: AfDCDOptions) -> tuple[str, ...]:
        """Return the feature that is generated."""
        return (options.tap,)

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: AfDCDOptions = AfDCDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        channels = teacher[options.tap].channels
        generator = two_convolutions(channels) if options.generator == "plain" else EnhancedGenerator(channels)
        self.generate = MaskedGenerator(student[options.tap].channels, channels, options.mask_ratio, generator)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"afdcd_fd", "afdcd_contrast"}; see `lfd.losses.DistillLoss`."""
        feature = student.taps[self.options.tap]
        grid = (feature.shape[2], feature.shape[3])
        known = counted(target, grid)
        if self.options.void:
            known = torch.ones_like(known)
        goal = to_grid(teacher.taps[self.options.tap].detach().float(), grid)
        generated = self.generate(feature, known)
        return {
            "afdcd_fd": generation_error(generated, goal, known),
            "afdcd_contrast": self._contrast(generated, goal, known),
        }

    def _contrast(self, generated: Tensor, goal: Tensor, known: Tensor) -> Tensor:
        (x, valid), (y, _) = (self._vectors(maps, known) for maps in (generated, goal))
        cells = self.options.patch**2
        groups: int = x.shape[2] // cells
        allowed = negatives(self.options.contrast, cells, groups, x.device)
        terms: list[Tensor] = []
        # Picture by picture: the backward pass of an L1 distance holds its differences, vector by vector.
        for ours, theirs, counts in zip(x, y, valid, strict=True):
            scores = -torch.cdist(ours, theirs, p=1) / self.options.temperature
            positive = scores.diagonal(dim1=1, dim2=2)
            # A finite floor: a vector without negatives has the loss 0, not NaN.
            others = scores.masked_fill(~(allowed & counts[:, None]), -1e30)
            terms.append(torch.logsumexp(torch.cat([positive[:, :, None], others], 2), 2) - positive)
        return masked_mean(torch.stack(terms), valid.float()) * groups

    def _vectors(self, maps: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, patches, N^2 M, C/M), cell by cell and in it group by group, and whether each counts."""
        o, weight = self.options, known[:, None]
        low = torch.finfo(maps.dtype).min
        weight, maps = (F.max_pool2d(x, o.pool, ceil_mode=True) for x in (weight, maps.masked_fill(weight == 0, low)))
        maps = maps.masked_fill(weight == 0, 0)
        size = -(-maps.shape[1] // o.groups)  # channels of a group, rounded up
        right, below, more = (
            -n % to for n, to in ((maps.shape[3], o.patch), (maps.shape[2], o.patch), (maps.shape[1], size))
        )
        maps, weight = F.pad(maps, (0, right, 0, below, 0, more)), F.pad(weight, (0, right, 0, below))
        batch, channels, height, width = maps.shape
        shape = (height // o.patch, o.patch, width // o.patch, o.patch)
        vectors = maps.view(batch, channels // size, size, *shape).permute(0, 3, 5, 4, 6, 1, 2)
        valid = weight.view(batch, *shape).permute(0, 1, 3, 2, 4).reshape(batch, -1, o.patch**2) > 0
        return vectors.reshape(*valid.shape[:2], -1, size), valid.repeat_interleave(channels // size, 2)


def negatives(contrast: str, cells: int, groups: int, device: torch.device) -> Tensor:
    """Return (cells groups, cells groups) bool: which of a patch's vectors are negatives to which."""
    index = torch.arange(cells * groups, device=device)
    cell, group = index // groups, index % groups
    same_cell, same_group = (x[:, None] == x[None] for x in (cell, group))
    kinds = {
        "omni": ~same_group,
        "spatial": same_group & ~same_cell,
        "channel": ~same_group & same_cell,
        "all": ~(same_group & same_cell),
    }
    return kinds[contrast]
