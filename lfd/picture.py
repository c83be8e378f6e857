"""Pictures for people: class maps in colour, and tables of pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lfd.preprocess import Image, resize_image
from lfd.spec import Labels


def palette(labels: Labels) -> NDArray[np.uint8]:
    """Return the (256, 1, 3) BGR table of a label value's colour; void and unknown values are black."""
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(labels), 0] = np.array(labels.colors, np.uint8)[:, ::-1]
    return table


def colorize(class_map: Image, labels: Labels) -> Image:
    """Return a class map, (H, W) uint8, as (H, W, 3) BGR."""
    # applyColorMap with a table of our own: 0.4 ms a 720p map, where indexing the palette takes 10.
    return np.asarray(cv2.applyColorMap(class_map, palette(labels)), dtype=np.uint8)


def table(rows: Sequence[Sequence[Image]], captions: Sequence[str], cell_hw: tuple[int, int]) -> Image:
    """Lay pictures out in rows under captions.

    Args:
        rows: Rows of (H, W, 3) BGR pictures of any size.
        captions: One a column.
        cell_hw: Size of a cell.
    """
    height, width = cell_hw
    gap, head = 4, 28
    canvas = np.full((head + len(rows) * (height + gap), len(captions) * (width + gap) - gap, 3), 24, np.uint8)
    for column, caption in enumerate(captions):
        origin = (column * (width + gap) + 6, head - 9)
        cv2.putText(canvas, caption, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (240, 240, 240), 1, cv2.LINE_AA)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            y, x = head + r * (height + gap), c * (width + gap)
            canvas[y : y + height, x : x + width] = resize_image(cell, cell_hw)
    return canvas
