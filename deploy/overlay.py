"""Class maps as colour over the frame, with a legend and the pace, at about 1.5 ms a 720p frame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import cv2
import numpy as np

from deploy.frames import Frame, StreamStatus
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
BAND_BYTES = 1 << 17
"""Of colours at once in `blend`: what fits into a core's second cache beside the picture."""
STALE = 0.55
"""Share of a stale picture that still shows; the rest is PANEL's grey."""
ALERT = (40, 40, 170)
"""BGR of the panel that says why it is stale."""


def blend(image: Image, class_map: Image, colors: Image, alpha: float, out: Image | None = None) -> Image:
    """Return the picture tinted by class.

    A lookup and a sum in OpenCV, band by band, so that the colours are still in the cache when they are mixed in: 0.9
    ms of one core at 1280x720 with alpha 0.5 and 1.2 with another, where a weighted sum of the whole picture takes 1.8
    to 2.5 and `palette[class_map]` with a float blend in numpy 25.

    Args:
        image: (H, W, 3) BGR uint8.
        class_map: (H, W) uint8 label values.
        colors: What `lfd.picture.palette` returns.
        alpha: Share of the colour, in [0, 1].
        out: (H, W, 3) uint8 to write into and return. Without, a new array: the system gives its memory page by
            page, which takes half as long as the blend.
    """
    mixed = np.empty_like(image) if out is None else out
    height, width = class_map.shape
    rows = max(1, BAND_BYTES // (3 * width))
    tint = np.empty((min(rows, height), width, 3), np.uint8)
    share = cv2.convertScaleAbs(colors, alpha=alpha)
    for top in range(0, height, rows):
        band = slice(top, min(top + rows, height))
        if alpha == 0.5:  # the default; a shift takes half of what a multiplication does
            np.right_shift(image[band], 1, out=mixed[band])
        else:
            cv2.convertScaleAbs(image[band], dst=mixed[band], alpha=1.0 - alpha)
        cv2.add(mixed[band], cv2.applyColorMap(class_map[band], share, tint[: band.stop - top]), dst=mixed[band])
    return mixed


class Overlay:
    """Paints frames; every sink that shows pictures shares one, so that each is painted once.

    A picture too small for a readable legend is enlarged by a whole number, so that the painted
    picture can be larger than the frame. Nobody but the overlay writes into what it returns.

    Args:
        labels: The model's classes.
        alpha: Share of the colour in the blend, in [0, 1].
        clock_ns: `time.monotonic_ns`, or a test's own.
    """

    def __init__(self, labels: Labels, alpha: float = 0.5, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.labels = labels
        self._alpha, self._clock_ns = alpha, clock_ns
        self._colors = palette(labels)
        self._legend: Image | None = None
        self._size_hw = (0, 0)
        self._scale, self._row = 1, MIN_ROW
        self._buffers: tuple[Image, Image] | None = None
        self._tint: Image | None = None
        self._last: tuple[Frame, Image] | None = None
        self._painted_ns: int | None = None
        self._period_ms = 0.0
        self._status: StreamStatus | None = None
        self._heard_ns = 0
        self._stale: tuple[str, Image] | None = None

    def paint(self, frame: Frame, class_map: Image) -> Image:
        """Return the frame with classes, legend, frames a second and latency.

        Args:
            frame: The picture.
            class_map: (H, W) uint8 at the frame's size.

        Returns:
            (H s, W s, 3) BGR uint8 with a whole s, 1 unless the frame is small. It is the same array
            for the same frame, and holds until the frame after the next is painted: two take turns.
        """
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        image = frame.image
        if image.shape[:2] != self._size_hw or self._buffers is None:
            self._fit(image.shape[0], image.shape[1])
            size = (image.shape[0] * self._scale, image.shape[1] * self._scale, 3)
            self._buffers = (np.empty(size, np.uint8), np.empty(size, np.uint8))
            self._tint = np.empty(image.shape, np.uint8) if self._scale > 1 else None
        picture = self._buffers[0]
        self._buffers = (self._buffers[1], picture)
        tinted = blend(image, class_map, self._colors, self._alpha, picture if self._tint is None else self._tint)
        if self._tint is not None:
            cv2.resize(tinted, (picture.shape[1], picture.shape[0]), dst=picture, interpolation=cv2.INTER_LINEAR)
        if self._legend is not None:
            _lay(picture, self._legend, 0, 0)
        self._write_pace(picture, frame)
        self._last, self._stale = (frame, picture), None
        return picture

    def stale(self, status: StreamStatus) -> Image | None:
        """Return the last picture greyed, with a banner that says since when and why no newer one comes.

        Args:
            status: Of the stream that is lost.

        Returns:
            As `paint`, an array of its own; the same one while the banner is. None before the first frame.
        """
        if self._last is None:
            return None
        now = self._clock_ns()
        if status != self._status:
            self._status, self._heard_ns = status, now
        self._painted_ns = None  # the pause is not the model's pace
        text = describe_loss(status, now, self._heard_ns)
        if self._stale is None or self._stale[0] != text:
            self._stale = (text, mark_stale(self._last[1], text))
        return self._stale[1]

    def _fit(self, height: int, width: int) -> None:
        """Choose enlargement and size of the text, and render the legend, for frames of this size."""
        self._size_hw = (height, width)
        for scale in range(1, MAX_SCALE + 1):
            h, w = height * scale, width * scale
            row = max(MIN_ROW, min(h // 30, w // 36, (h - 3 * MIN_ROW) // len(self.labels)))
            legend, shown = render_legend(self.labels, row, h - 2 * row, w // 2)
            self._scale, self._row, self._legend = scale, row, legend
            if shown == len(self.labels) or (shown and min(h, w) >= BIG_ENOUGH):
                return

    def _write_pace(self, picture: Image, frame: Frame) -> None:
        now = self._clock_ns()
        if self._painted_ns is not None:
            period = (now - self._painted_ns) / 1e6
            self._period_ms = period if not self._period_ms else 0.9 * self._period_ms + 0.1 * period
        self._painted_ns = now
        rate = f"{1e3 / self._period_ms:.1f}" if self._period_ms > 0 else "-"
        text = f"{rate} fps   {(now - frame.captured_ns) / 1e6:.0f} ms"
        label = _render_text(text, self._row)
        _lay(picture, label, max(0, picture.shape[0] - label.shape[0]), 0)


def mark_stale(picture: Image, why: str) -> Image:
    """Return a picture greyed, with a banner.

    Args:
        picture: (H, W, 3) BGR uint8; it stays as it is.
        why: The banner's text, as large as fits into the picture's width.
    """
    grey = np.full_like(picture, PANEL)
    stale = np.asarray(cv2.addWeighted(picture, STALE, grey, 1.0 - STALE, 0.0, dst=grey), dtype=np.uint8)
    height, width = picture.shape[:2]
    row = max(MIN_ROW, height // 18)
    while row > 6 and _text_width(why, row) + row > width:
        row -= 1
    banner = np.full((2 * row, width, 3), ALERT, np.uint8)
    _draw(banner, why, max(0, (width - _text_width(why, row)) // 2), row // 2, row)
    _lay(stale, banner, max(0, (height - banner.shape[0]) // 2), 0)
    return stale


def describe_loss(status: StreamStatus, now_ns: int, heard_ns: int) -> str:
    """Return how long there has been no signal, why, and what is done: "no signal for 3 s: timed out, retry in 2 s".

    Args:
        status: Of a stream that is lost.
        now_ns: `time.monotonic_ns()`.
        heard_ns: When this status was heard first, from which `retry_in_s` counts.
    """
    text = f"no signal for {_span((now_ns - status.since_ns) / 1e9)}"
    if status.cause is not None:
        text += f": {status.cause.value}"
    if status.retry_in_s is None:
        return text
    wait = status.retry_in_s - (now_ns - heard_ns) / 1e9
    return f"{text}, retry in {_span(math.ceil(wait))}" if wait > 0 else f"{text}, trying again"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _draw(panel: Image, text: str, x: int, top: int, row: int) -> None:
    baseline = top + round(0.72 * row)
    cv2.putText(panel, text, (x, baseline), FONT, row / 36, INK, max(1, row // 16), cv2.LINE_AA)


def _text_width(text: str, row: int) -> int:
    return int(cv2.getTextSize(text, FONT, row / 36, max(1, row // 16))[0][0])


def _panel(height: int, width: int) -> Image:
    return np.full((height, width, 3), PANEL, np.uint8)


def _render_text(text: str, row: int) -> Image:
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
