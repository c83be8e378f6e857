"""Unit vectors that are safe where a vector is zero."""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-6
"""A vector below this length has no direction: relations to it are 0 and carry no gradient."""


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Scale vectors along a dimension to length 1; one shorter than `SHORTEST` becomes zero, without gradient.

    `torch.nn.functional.normalize` multiplies the gradient of a zero vector by 1e12, and features behind
    a ReLU are often exactly zero.
    """
    square = vectors.square().sum(dim, keepdim=True)
    there = square > SHORTEST**2
    return vectors * torch.where(there, square, 1).rsqrt() * there
