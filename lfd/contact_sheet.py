"""A contact sheet: pictures of a data set with their labels laid over, and the classes with their colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from lfd.picture import colorize
from lfd.preprocess import Image, resize_image, resize_labels
from lfd.spec import Labels

COLUMNS = 4
BOX_HW = (270, 360)
"""Room for a picture, px; it keeps its own shape."""
TINT = 0.55
"""Share of the class colour over the picture; void is darkened as much."""

_BACKGROUND, _INK, _DIM = (24, 24, 24), (240, 240, 240), (130, 130, 130)
_GAP, _MARGIN, _LINE, _SWATCH = 8, 16, 24, 26
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5


class Tile(NamedTuple):
    """A picture on the sheet.

    Attributes:
        picture: (h, w, 3) BGR uint8, at most BOX_HW; None where it could not be read.
        caption: Stands under it.
    """

    picture: Image | None
    caption: str


class Entry(NamedTuple):
    """A line of the legend.

    Attributes:
        color: RGB.
        text: The class.
        note: Follows it, dimmer; such as its share.
    """

    color: tuple[int, int, int]
    text: str
    note: str


def draw_tile(image: Image, mask: Image, labels: Labels, caption: str) -> Tile:
    """Shrink a picture to its place and lay its labels over; one without any is shown as it is.

    Args:
        image: (H, W, 3) BGR uint8.
        mask: (H, W) uint8 label values.
        labels: The classes.
        caption: Stands under it.
    """
    height, width = image.shape[:2]
    scale = min(BOX_HW[0] / height, BOX_HW[1] / width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small, values = resize_image(image, size), resize_labels(mask, size)
    if (mask == labels.ignore_index).all():
        return Tile(small, caption)
    tinted = cv2.addWeighted(small, 1 - TINT, colorize(values, labels), TINT, 0.0)
    return Tile(np.asarray(tinted, np.uint8), caption)


def draw_sheet(groups: Sequence[tuple[str, Sequence[Tile]]], legend: Sequence[Entry]) -> Image:
    """Lay out tiles by group, and the legend below, (H, W, 3) BGR uint8.

    Args:
        groups: Heading and tiles of each.
        legend: In as many columns as fit.
    """
    width = 2 * _MARGIN + COLUMNS * (BOX_HW[1] + _GAP) - _GAP
    bands = [band for heading, tiles in groups for band in _group_bands(heading, tiles, width)]
    bands += _legend_bands(legend, width)
    margin = _band(_MARGIN, width)
    return np.vstack([margin, *bands, margin])


def _band(height: int, width: int) -> Image:
    return np.full((height, width, 3), _BACKGROUND, np.uint8)


def _group_bands(heading: str, tiles: Sequence[Tile], width: int) -> list[Image]:
    head = _band(_LINE + _GAP, width)
    _write(head, heading, _MARGIN, _LINE - 6, _INK, 0.62)
    bands = [head]
    for begin in range(0, len(tiles), COLUMNS):
        row = tiles[begin : begin + COLUMNS]
        height = max(BOX_HW[0] // 3 if tile.picture is None else tile.picture.shape[0] for tile in row)
        band = _band(height + _LINE + _GAP, width)
        for column, tile in enumerate(row):
            left = _MARGIN + column * (BOX_HW[1] + _GAP)
            if tile.picture is None:
                cv2.rectangle(band, (left, 0), (left + BOX_HW[1] - 1, height - 1), _DIM, 1)
                _write(band, "cannot be read", left + 12, height // 2 + 5, _DIM)
            else:
                h, w = tile.picture.shape[:2]
                x = left + (BOX_HW[1] - w) // 2
                band[height - h : height, x : x + w] = tile.picture
            _write(band, _clipped(tile.caption, BOX_HW[1]), left, height + _LINE - 7, _DIM)
        bands.append(band)
    return bands


def _legend_bands(legend: Sequence[Entry], width: int) -> list[Image]:
    if not legend:
        return []
    room = width - 2 * _MARGIN
    widest = max(_SWATCH + 10 + _length(f"{entry.text}  {entry.note}") for entry in legend) + 2 * _GAP
    columns = max(1, min(room // widest, len(legend)))
    rows = -(-len(legend) // columns)
    step = room // columns
    band = _band(_GAP + rows * _LINE, width)
    for index, (color, text, note) in enumerate(legend):
        left, top = _MARGIN + index // rows * step, _GAP + index % rows * _LINE
        cv2.rectangle(band, (left, top + 4), (left + _SWATCH - 1, top + _LINE - 5), color[::-1], cv2.FILLED)
        cv2.rectangle(band, (left, top + 4), (left + _SWATCH - 1, top + _LINE - 5), _DIM, 1)
        baseline, shown = top + _LINE - 7, _clipped(text, step - _SWATCH - 10 - _length(f"  {note}"))
        _write(band, shown, left + _SWATCH + 10, baseline, _INK)
        _write(band, note, left + _SWATCH + 10 + _length(f"{shown}  "), baseline, _DIM)
    return [band]


def _write(canvas: Image, text: str, x: int, baseline: int, color: tuple[int, int, int], scale: float = _SCALE) -> None:
    cv2.putText(canvas, text, (x, baseline), _FONT, scale, color, 1, cv2.LINE_AA)


def _length(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0])


def _clipped(text: str, room: int) -> str:
    """Return text, with its end cut off where it is longer than `room` px."""
    if _length(text) <= room:
        return text
    while text and _length(text + "...") > room:
        text = text[:-1]
    return text + "..."
