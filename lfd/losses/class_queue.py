"""First-in, first-out memories of embeddings, one a class, for losses that look beyond their batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.distributed import all_sum, rank, world_size


class ClassQueue(nn.Module):
    """A ring of unit vectors for each class; all of it buffers, so that a run goes on exactly where it stopped.

    Args:
        num_classes: K.
        size: Vectors that a class keeps.
        channels: C.
        dtype: How they are kept.
    """

    vectors: Tensor
    place: Tensor

    def __init__(self, num_classes: int, size: int, channels: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.size = size
        # One vector more, always zero and never drawn: where what is not to be kept is written, at a fixed shape.
        self.register_buffer("vectors", torch.zeros(num_classes, size + 1, channels, dtype=dtype))
        for ring in self.vectors:  # class by class, for the random numbers are in float32
            ring[:size] = F.normalize(torch.randn(size, channels), dim=1)
        self.register_buffer("place", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, vectors: Tensor, valid: Tensor) -> None:
        """Append, in order, (K, n, C) where (K, n) bool; of more than fit, the last."""
        total = valid.sum(1)
        order = valid.cumsum(1) - 1
        keep = valid & (order >= total[:, None] - self.size)
        slot = torch.where(keep, (self.place[:, None] + order) % self.size, self.size)
        classes = torch.arange(len(slot), device=slot.device)[:, None]
        self.vectors[classes, slot] = (vectors * keep[:, :, None]).to(self.vectors.dtype)
        self.place.copy_((self.place + total) % self.size)

    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        """Return (K count, C) float32: the same random places of every class, or all where there are fewer."""
        drawn = torch.randperm(self.size, device=self.vectors.device)[:count]
        return self.vectors[:, drawn].flatten(0, 1).float()


def pixels_by_class(cells: Tensor, num_classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw up to `count` cells of each class in each picture.

    Args:
        cells: (B, hw) int64, a class or anything from K on for none.
        num_classes: K.
        count: n.

    Returns:
        (B, K, n) int64 indices into the cells, and (B, K, n) bool, whether there were as many.
    """
    cells = cells.clamp_max(num_classes)
    shuffled = torch.rand(cells.shape, device=cells.device).argsort(1)
    by_class = shuffled.gather(1, cells.gather(1, shuffled).argsort(stable=True, dim=1))
    held = F.one_hot(cells, num_classes + 1)[:, :, :num_classes].sum(1)  # (B, K)
    first = held.cumsum(1) - held
    wanted = torch.arange(count, device=cells.device)
    places = (first[:, :, None] + wanted).clamp_max(cells.shape[1] - 1)
    return by_class.gather(1, places.flatten(1)).view_as(places), wanted < held[:, :, None]


def of_all(value: Tensor) -> Tensor:
    """Return (B, ...) of every process, one after another by rank, without gradient; each has the same B."""
    if world_size() == 1:
        return value
    # Booleans travel as bytes: gloo takes no others.
    joined = value.new_zeros(
        world_size(), *value.shape, dtype=torch.uint8 if value.dtype == torch.bool else value.dtype
    )
    joined[rank()] = value
    return all_sum(joined).flatten(0, 1).to(value.dtype)
