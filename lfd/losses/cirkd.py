"""CIRKD, cross-image relational knowledge distillation: how pixels relate to pixels and regions of other pictures.

Yang, Zhou, An, Jiang, Xu, Zhang, "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022
(arXiv 2204.06986); details as in the authors' losses/cirkd_mini_batch.py and cirkd_memory.py.

    n(x)       = x / |x|_2 over channels,  s_ia = n(F_s), t_ia = n(F_t)      cell a of picture i
    batch      mean over pictures i, j and cells a of KL(softmax_b(t_ia . t_jb / T) || softmax_b(s_ia . s_jb / T))
    G          = W_2 relu(BN(W_1 F_s)), 1x1 convolutions without bias, to the teacher's channels
    pixel      mean_ia T_kd^2 KL(softmax_v(t_ia . v / (T T_kd)) || softmax_v(n(G_ia) . v / (T T_kd)))
               over v drawn from the queues of the teacher's pixels, one queue a class
    region     the same over the queues of the teacher's regions, the mean of a class's t in a picture

T = 0.1, T_kd = 1; 20 000 pixels and 2000 regions a class are kept, 4096 / K + 1 and 1024 / K + 1 a class are drawn at
each step, at the same places of all classes; each class of each picture gives 16 pixels and its region.

Published weights: batch 1, pixel 0.1, region 0.1, with KD of weight 1 (defaults of the authors' train_cirkd.py, which
their scripts for CamVid and ADE20K keep).

    pooling    of `batch`: theirs can average 2x2 cells and does not by default, at 2 pictures a process. A pair of
               512x1024 crops at stride 8 is then a matrix of 268 MB; here cells are averaged by the least whole
               factor that leaves `cells`, and `cells = 8192` is theirs there                              CHOSEN
    processes  `batch` relates the pictures of a process, as theirs. Queues take in those of all processes, in the
               order of the ranks, and are the same in each; what is drawn is each process's own             KNOWN
    queues     a ring; theirs jumps to the start when a group of pixels does not fit, and drops some       CHOSEN
    labels     unlabelled cells are anchors, and enter no queue                                            CHOSEN
    void       neither anchor, partner nor kept, and outside G's batch norm; `void` lets `batch` count it, as
               theirs                                                                                      CHOSEN

The queues take 4 K (20 000 + 2000) C bytes: 0.4 GB at 19 classes and 256 channels, 3.4 GB at 150; `queue_dtype =
"float16"` halves it, at an error of 0.0005, and `pixel_queue` scales it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lfd.config import among, within
from lfd.losses.class_queue import ClassQueue, of_all, pixels_by_class
from lfd.losses.common import DistillLoss, counted, masked_mean, to_cells, to_grid
from lfd.losses.masked_norm import MaskedBatchNorm2d
from lfd.taps import Outputs, TapInfo

ROWS = 4096
"""Anchors that are related to the queues at a time: 64 MB of float32 for 4096 vectors."""

DTYPES = {"float32": torch.float32, "float16": torch.float16}
KINDS = {
    "both": ("cirkd_batch", "cirkd_pixel", "cirkd_region"),
    "batch": ("cirkd_batch",),
    "memory": ("cirkd_pixel", "cirkd_region"),
}


@dataclass(frozen=True)
class CIRKDOptions:
    """Options of CIRKD, [loss.cirkd].

    Attributes:
        tap: Feature whose relations are distilled.
        kind: Relations within the `batch`, to the `memory`, or `both`.
        temperature: T.
        memory_temperature: T_kd.
        cells: Most cells of a picture that `cirkd_batch` relates.
        pixel_queue: Pixels kept of each class.
        region_queue: Regions kept of each class.
        pixels: Kept at a step, of a class and picture.
        pixel_contrast: Pixels related to at a step, over all classes.
        region_contrast: Regions, likewise.
        queue_dtype: How the queues are kept: `float32` or `float16`.
        void: Count void pixels too in `cirkd_batch`, as the published code does.
    """

    tap: str = "deep"
    kind: str = "both"
    temperature: float = 0.1
    memory_temperature: float = 1.0
    cells: int = 4096
    pixel_queue: int = 20_000
    region_queue: int = 2000
    pixels: int = 16
    pixel_contrast: int = 4096
    region_contrast: int = 1024
    queue_dtype: str = "float32"
    void: bool = False

    def __post_init__(self) -> None:
        among("loss.cirkd.kind", self.kind, KINDS)
        within("loss.cirkd.temperature", self.temperature, 0.001, 1000)
        within("loss.cirkd.memory_temperature", self.memory_temperature, 0.01, 1000)
        within("loss.cirkd.cells", self.cells, 1, 1_000_000)
        for key in ("pixel_queue", "region_queue", "pixel_contrast", "region_contrast"):
            within(f"loss.cirkd.{key}", getattr(self, key), 1, 10_000_000)
        within("loss.cirkd.pixels", self.pixels, 1, 65_536)
        among("loss.cirkd.queue_dtype", self.queue_dtype, DTYPES)


class Projection(nn.Module):
    """G, the student's projection head."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(student, teacher, 1, bias=False)
        self.norm = MaskedBatchNorm2d(teacher)
        self.last = nn.Conv2d(teacher, teacher, 1, bias=False)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Map (B, C_s, h, w) to (B, C_t, h, w)."""
        projected: Tensor = self.last(F.relu(self.norm(self.first(x), known)))
        return projected


class CIRKD(DistillLoss):
    """Relations of pixels across pictures, in the batch and to the memory of earlier ones."""

    parts: ClassVar[tuple[str, ...]] = KINDS["both"]
    Options: ClassVar[type[Any]] = CIRKDOptions
    serves: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("cells", "void"), ("cirkd_batch",)),
        **dict.fromkeys(("memory_temperature", "queue_dtype"), KINDS["memory"]),
        **dict.fromkeys(("pixel_queue", "pixels", "pixel_contrast"), ("cirkd_pixel",)),
        **dict.fromkeys(("region_queue", "region_contrast"), ("cirkd_region",)),
    }

    @classmethod
    def needs(cls, options: CIRKDOptions) -> tuple[str, ...]:
        """Return the feature whose relations are distilled."""
        return (options.tap,)

    @classmethod
    def active(cls, options: CIRKDOptions) -> tuple[str, ...]:
        """Return the parts of the kind that was chosen."""
        return KINDS[options.kind]

    def __init__(
        self,
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        num_classes: int,
        options: CIRKDOptions = CIRKDOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        self.num_classes = num_classes
        if options.kind != "batch":
            channels = teacher[options.tap].channels
            dtype = DTYPES[options.queue_dtype]
            self.project = Projection(student[options.tap].channels, channels)
            self.pixels = ClassQueue(num_classes, options.pixel_queue, channels, dtype)
            self.regions = ClassQueue(num_classes, options.region_queue, channels, dtype)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the parts of the kind that was chosen; see `lfd.losses.DistillLoss`."""
        o = self.options
        feature = student.taps[o.tap]
        grid = (feature.shape[2], feature.shape[3])
        goal = to_grid(teacher.taps[o.tap].detach().float(), grid)
        known = counted(target, grid)
        parts = {}
        if o.kind != "memory":
            related = torch.ones_like(known) if o.void else known
            parts["cirkd_batch"] = self._batch(feature.float(), goal, related)
        if o.kind != "batch":
            ours, theirs = _cells(self.project(feature, known).float()), _cells(goal)
            self._remember(theirs, to_cells(target, grid).flatten(1))
            for part, queue, drawn in (
                ("cirkd_pixel", self.pixels, o.pixel_contrast),
                ("cirkd_region", self.regions, o.region_contrast),
            ):
                vectors = queue.draw(drawn // self.num_classes + 1)
                kl = torch.cat(
                    [
                        _compare(s, t, vectors, o.temperature * o.memory_temperature)
                        for s, t in zip(*(torch.split(x.flatten(0, 1), ROWS) for x in (ours, theirs)), strict=True)
                    ]
                )
                parts[part] = masked_mean(kl, known.flatten()) * o.memory_temperature**2
        return parts

    def _batch(self, feature: Tensor, goal: Tensor, known: Tensor) -> Tensor:
        """Return the mean KL of the relations between the cells of each two pictures of the batch."""
        height, width = known.shape[1:]
        side = next(k for k in count(1) if -(-height // k) * -(-width // k) <= self.options.cells)
        weight = F.avg_pool2d(known[:, None], side, ceil_mode=True)
        ours, theirs = (
            _cells(F.avg_pool2d(x * known[:, None], side, ceil_mode=True) / weight.clamp_min(1e-6))
            for x in (feature, goal)
        )
        valid = (weight > 0).flatten(1)
        kl = torch.stack(
            [  # a picture with all at a time, and again in the backward pass: all pairs at once would not fit
                checkpoint(
                    _relate,
                    s,
                    ours,
                    t,
                    theirs,
                    valid,
                    self.options.temperature,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for s, t in zip(ours, theirs, strict=True)
            ]
        )  # (B, B, cells): picture, the one that it is related to, cell
        of_pair = (kl * valid[:, None]).sum(2) / valid.sum(1).clamp_min(1)[:, None]
        there = valid.any(1).float()
        pairs = there[:, None] * there
        return (of_pair * pairs).sum() / pairs.sum().clamp_min(1)

    @torch.no_grad()
    def _remember(self, goal: Tensor, cells: Tensor) -> None:
        """Put pixels and regions of the teacher, (B, hw, C) of unit length, into the queues of their classes."""
        if not self.training:
            return
        drawn, enough = pixels_by_class(cells, self.num_classes, self.options.pixels)
        pixels = goal.gather(1, drawn.flatten(1)[:, :, None].expand(-1, -1, goal.shape[2]))
        members = F.one_hot(cells.clamp_max(self.num_classes), self.num_classes + 1)[:, :, : self.num_classes].float()
        regions = F.normalize(members.mT @ goal, dim=2)
        self.pixels.add(*(_by_class(of_all(x)) for x in (pixels.view(*drawn.shape, -1), enough)))
        self.regions.add(*(_by_class(of_all(x[:, :, None])) for x in (regions, members.any(1))))


def _cells(maps: Tensor) -> Tensor:
    """Return (B, hw, C) of unit length, of (B, C, h, w)."""
    return F.normalize(maps.flatten(2).mT, dim=2, eps=1e-6)


def _by_class(x: Tensor) -> Tensor:
    """Return (K, B n, ...) of (B, K, n, ...)."""
    return x.transpose(0, 1).flatten(1, 2)


def _kl(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return KL(softmax(theirs) || softmax(ours)) over the last axis."""
    log_s, log_t = ours.log_softmax(-1), theirs.log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def _relate(s: Tensor, ours: Tensor, t: Tensor, theirs: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Return (B, n): the KL for cells (n, C) of a picture, over the cells (B, n, C) of each that are valid."""
    with torch.autocast(s.device.type, enabled=False):
        scores = [
            (x @ others.mT / temperature).masked_fill(~valid[:, None], -1e30) for x, others in ((s, ours), (t, theirs))
        ]
        return _kl(scores[0], scores[1])


def _against(s: Tensor, t: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    with torch.autocast(s.device.type, enabled=False):
        return _kl(s @ vectors.T / temperature, t @ vectors.T / temperature)


def _compare(s: Tensor, t: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    """Return (n,): the KL for cells (n, C), over vectors (m, C); the scores are made again in the backward pass."""
    kl: Tensor = checkpoint(_against, s, t, vectors, temperature, use_reentrant=False, preserve_rng_state=False)
    return kl
