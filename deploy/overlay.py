"""Class maps as colour over the frame, with a legend and the pace, at about 1 ms a 720p frame."""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np

from deploy.frames import Frame
from lfd.picture import palette
from lfd.preprocess import Image
from lfd.spec import Labels

FONT = cv2.FONT_HERSHEY_SIMPLEX
INK = (255, 255, 255)
PANEL = 24
"""Grey of the panels behind text; what shines through them is weighed by GLASS."""
GLASS = 0.25
MIN_ROW = 15
"""Height in pixels of the smallest row of text that can be read."""
MAX_SCALE = 8
BIG_ENOUGH = 360
"""A picture of this many pixels is not enlarged for the sake of a long legend."""


def blend(image: Image, class_map: Image, colors: Image, alpha: float) -> Image:
    """Return the picture tinted by class.

    One lookup and one weighted sum in OpenCV: 0.8 ms at 1280x720 on two cores, where
    `palette[class_map]` and a float blend in numpy take 25 ms.

    Args:
        image: (H, W, 3) BGR uint8.
        class_map: (H, W) uint8 label values.
        colors: What `lfd.picture.palette` returns.
        alpha: Share of the colour, in [0, 1].
    """
    tint = cv2.applyColorMap(class_map, colors)
    return np.asarray(cv2.addWeighted(image, 1.0 - alpha, tint, alpha, 0.0, dst=tint), dtype=np.uint8)


class Overlay:
    """Paints frames; every sink that shows pictures shares one, so that each is painted once.

    A picture too small for a readable legend is enlarged by a whole number, so that the painted
    picture can be larger than the frame.

    Args:
        labels: The model's classes.
        alpha: Share of the colour in the blend, in [0, 1].
        clock_ns: `time.monotonic_ns`, or a test's own.
    """

    def __init__(self, labels: Labels, alpha: float = 0.5, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._labels, self._alpha, self._clock_ns = labels, alpha, clock_ns
        self._colors = palette(labels)
        self._legend: Image | None = None
        self._size_hw = (0, 0)
        self._scale, self._row = 1, MIN_ROW
        self._last: tuple[Frame, Image] | None = None
        self._painted_ns: int | None = None
        self._period_ms = 0.0

    def paint(self, frame: Frame, class_map: Image) -> Image:
        """Return the frame with classes, legend, frames a second and latency.

        Args:
            frame: The picture.
            class_map: (H, W) uint8 at the frame's size.

        Returns:
            (H s, W s, 3) BGR uint8 with a whole s, 1 unless the frame is small. It is the same array
            for the same frame; nobody writes into it.
        """
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        image = frame.image
        if image.shape[:2] != self._size_hw:
            self._fit(image.shape[0], image.shape[1])
        picture = blend(image, class_map, self._colors, self._alpha)
        if self._scale > 1:
            size = (image.shape[1] * self._scale, image.shape[0] * self._scale)
            picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        if self._legend is not None:
            _lay(picture, self._legend, 0, 0)
        self._write_pace(picture, frame)
        self._last = (frame, picture)
        return picture

    def _fit(self, height: int, width: int) -> None:
        """Choose enlargement and size of the text, and render the legend, for frames of this size."""
        self._size_hw = (height, width)
        for scale in range(1, MAX_SCALE + 1):
            h, w = height * scale, width * scale
            row = max(MIN_ROW, min(h // 30, w // 36, (h - 3 * MIN_ROW) // len(self._labels)))
            legend, shown = render_legend(self._labels, row, h - 2 * row, w // 2)
            self._scale, self._row, self._legend = scale, row, legend
            if shown == len(self._labels) or (shown and min(h, w) >= BIG_ENOUGH):
                return

    def _write_pace(self, picture: Image, frame: Frame) -> None:
        now = self._clock_ns()
        if self._painted_ns is not None:
            period = (now - self._painted_ns) / 1e6
            self._period_ms = period if not self._period_ms else 0.9 * self._period_ms + 0.1 * period
        self._painted_ns = now
        rate = f"{1e3 / self._period_ms:.1f}" if self._period_ms > 0 else "-"
        text = f"{rate} fps   {(now - frame.captured_ns) / 1e6:.0f} ms"
        label = render_text(text, self._row)
        _lay(picture, label, max(0, picture.shape[0] - label.shape[0]), 0)


def _draw(panel: Image, text: str, x: int, top: int, row: int) -> None:
    baseline = top + round(0.72 * row)
    cv2.putText(panel, text, (x, baseline), FONT, row / 36, INK, max(1, row // 16), cv2.LINE_AA)


def _text_width(text: str, row: int) -> int:
    return int(cv2.getTextSize(text, FONT, row / 36, max(1, row // 16))[0][0])


def _panel(height: int, width: int) -> Image:
    return np.full((height, width, 3), PANEL, np.uint8)


def render_text(text: str, row: int) -> Image:
    """Return a panel with one line of text, (row, w, 3) BGR uint8."""
    panel = _panel(row, _text_width(text, row) + row)
    _draw(panel, text, row // 2, 0, row)
    return panel


def render_legend(labels: Labels, row: int, max_height: int, max_width: int) -> tuple[Image | None, int]:
    """Draw colours and names, one class a row, in as many rows as there is room for.

    Args:
        labels: The classes.
        row: Height of a row in pixels.
        max_height: Room in pixels.
        max_width: Room in pixels.

    Returns:
        The legend, (h, w, 3) BGR uint8, or None where nothing fits; and how many classes it shows.
    """
    rows = (max_height - row // 2) // row
    shown = len(labels) if len(labels) <= rows else max(0, rows - 1)
    names = [*labels.names[:shown], *([f"+ {len(labels) - shown} more"] if shown < len(labels) else [])]
    width = 2 * row + max(_text_width(name, row) for name in names) + row // 2
    if not shown or width > max_width:
        return None, 0
    legend = _panel(len(names) * row + row // 2, width)
    for i, name in enumerate(names):
        top = row // 4 + i * row
        if i < shown:
            cut = max(1, row // 6)
            legend[top + cut : top + row - cut, row // 2 : row + row // 2] = labels.colors[i][::-1]
        _draw(legend, name, 2 * row, top, row)
    return legend, shown


def _lay(picture: Image, panel: Image, top: int, left: int) -> None:
    """Blend a panel into the picture in place, cut off where it is too large."""
    region = picture[top : top + panel.shape[0], left : left + panel.shape[1]]
    cv2.addWeighted(region, GLASS, panel[: region.shape[0], : region.shape[1]], 1.0 - GLASS, 0.0, dst=region)
