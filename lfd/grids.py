"""How the cells of a feature lie over a network's input."""

from __future__ import annotations

import functools

MAX_LEADING = 8
"""Class and register tokens that may stand before those of the patches."""


@functools.cache
def token_grid(count: int, size_hw: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid (h, w) of a transformer's tokens, None when there is none.

    A patch has one stride s on both axes, so that the grid is (ceil(H / s), ceil(W / s)); up to MAX_LEADING class and
    register tokens stand before it. Strides that divide the input are taken before those that need padding, then
    fewer leading tokens before more. Both sides of the grid fall as s grows, so that no two grids are left equal.

    Args:
        count: N, the tokens.
        size_hw: The network's input.
    """
    height, width = size_hw
    best: tuple[bool, int, tuple[int, int]] | None = None
    for stride in range(1, max(size_hw) + 1):
        grid = -(-height // stride), -(-width // stride)
        leading = count - grid[0] * grid[1]
        if 0 <= leading <= MAX_LEADING:
            found = (bool(height % stride or width % stride), leading, grid)
            best = found if best is None else min(best, found)
    return None if best is None else best[2]


@functools.cache
def stride_of(grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> int | None:
    """Return the stride s with grid = ceil(size / s) on both axes: a power of two if one fits; None when none does."""
    fits = [
        s for s in range(1, max(size_hw) + 1) if all(-(-n // s) == g for n, g in zip(size_hw, grid_hw, strict=True))
    ]
    return next((s for s in fits if s & (s - 1) == 0), fits[0] if fits else None)
