"""What `lfd-train explain` draws: masks as heat over their picture, and class weights over the steps of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from lfd.picture import colorize, table
from lfd.preprocess import Image, content_box, resize_image, resize_labels
from lfd.spec import Labels, Preprocess

Color = tuple[int, int, int]
"""RGB in [0, 255], as in `lfd.spec.Labels`."""

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

WIDTH = 480
"""Of a picture in a table: what the captions take."""
ROW = 26
"""Height in pixels of a row of text below a picture."""
TEACHABLE, BOTH_WRONG = (230, 159, 0), (86, 180, 233)
"""Where the student alone is wrong, and where the teacher is too; apart for the colour-blind."""

_GROUND, _INK = 24, (240, 240, 240)
_DIM = 0.35
"""Brightness of a picture that serves as the ground of something else."""
_HEAT, _GROUND_SHARE = 0.85, 0.6
"""Weights of colour and ground in a sum of both."""


class Shown(NamedTuple):
    """One picture with what is drawn of it.

    Attributes:
        image: (H, W, 3) BGR uint8.
        truth: (H, W) label values.
        teacher: (H, W), its class map.
        student: Likewise.
        masks: By kind: (h, w) on the student's grid, NaN where the loss counts nothing.
        preprocess: The student's.
        labels: The classes.
    """

    image: Image
    truth: Image
    teacher: Image
    student: Image
    masks: dict[str, Floats]
    preprocess: Preprocess
    labels: Labels

    @property
    def known(self) -> Bools:
        """(H, W), where there is a label."""
        known: Bools = self.truth != self.labels.ignore_index
        return known

    @property
    def wrong(self) -> Bools:
        """(H, W), where the student contradicts a label."""
        wrong: Bools = self.known & (self.student != self.truth)
        return wrong

    def mask(self, kind: str) -> Floats:
        """(H, W), a mask brought to the frame: each pixel takes the cell that its centre lies in."""
        frame_hw = (self.truth.shape[0], self.truth.shape[1])
        top, left, h, w = content_box(frame_hw, self.preprocess)
        cells = self.masks[kind]
        spans = zip((top, left), (h, w), frame_hw, self.preprocess.size_hw, cells.shape, strict=True)
        y, x = (((np.arange(n) + 0.5) / n * part + at) * grid / size for at, part, n, size, grid in spans)
        values: Floats = cells[y.astype(int)[:, None], x.astype(int)]
        return values


def overview(shown: Shown, captions: Sequence[str], kind: str, scale: tuple[float, float]) -> Image:
    """Return a picture of a picture: frame, teacher and student above truth, mask and the student's errors.

    Args:
        shown: What is drawn.
        captions: Of the six cells, row by row.
        kind: Of the mask.
        scale: Numbers at the ends of the mask's colours.
    """
    blank = np.full((ROW, WIDTH, 3), _GROUND, np.uint8)
    truth = _classes(shown.truth, shown.labels) if shown.known.any() else np.full_like(_fit(shown.image), _GROUND)
    above = [_fit(shown.image), *(_classes(found, shown.labels) for found in (shown.teacher, shown.student))]
    marks = key([("only the student is wrong", TEACHABLE), ("both are", BOTH_WRONG)], WIDTH)
    errors = np.vstack([_errors(shown), marks])
    below = [np.vstack([truth, blank]), _heat_cell(shown, kind, scale), errors]
    present = np.unique(np.stack([shown.truth, shown.teacher, shown.student]))
    classes = [(shown.labels.names[i], shown.labels.colors[i]) for i in present if i < len(shown.labels)]
    rows = [_row(above, captions[:3]), _row(below, captions[3:])]
    return np.vstack([*rows, key([*classes, ("no label", (0, 0, 0))], rows[0].shape[1])])


def all_masks(shown: Shown, captions: Mapping[str, str], scale: tuple[float, float]) -> Image:
    """Return the masks of every kind, three a row, each under its caption and all in the same colours."""
    kinds = list(captions)
    rows = [kinds[i : i + 3] for i in range(0, len(kinds), 3)]
    return np.vstack([_row([_heat_cell(shown, k, scale) for k in row], [captions[k] for k in row]) for row in rows])


def _row(cells: Sequence[Image], captions: Sequence[str]) -> Image:
    return table([cells], captions, (cells[0].shape[0], cells[0].shape[1]))


def _cell_hw(picture: Image) -> tuple[int, int]:
    return max(1, round(WIDTH * picture.shape[0] / picture.shape[1])), WIDTH


def _fit(image: Image) -> Image:
    return resize_image(image, _cell_hw(image))


def _classes(class_map: Image, labels: Labels) -> Image:
    return colorize(resize_labels(class_map, _cell_hw(class_map)), labels)


def _heat_cell(shown: Shown, kind: str, scale: tuple[float, float]) -> Image:
    ground = dim(_fit(shown.image))
    size = (ground.shape[1], ground.shape[0])
    values = cv2.resize(shown.mask(kind), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.vstack([heat(ground, np.asarray(values, np.float32), scale), color_bar(WIDTH, scale)])


def _errors(shown: Shown) -> Image:
    ground = dim(_fit(shown.image))
    if not shown.known.any():
        return np.full_like(ground, _GROUND)
    of_both = shown.teacher != shown.truth
    for where, color in ((shown.wrong & ~of_both, TEACHABLE), (shown.wrong & of_both, BOTH_WRONG)):
        ground[resize_labels(where.astype(np.uint8), _cell_hw(shown.image)) > 0] = color[::-1]
    return ground


def dim(image: Image) -> Image:
    """Return a picture, (H, W, 3) BGR uint8, as a dark grey ground for something else."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.cvtColor((grey * _DIM).astype(np.uint8), cv2.COLOR_GRAY2BGR), dtype=np.uint8)


def heat(ground: Image, values: Floats, scale: tuple[float, float]) -> Image:
    """Return numbers (H, W), dark at the low end of the scale and yellow at the high one, over what `dim` made.

    NaN shows the ground alone.
    """
    low, high = scale
    level = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-9), 0, 1)
    hot = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)
    mixed = cv2.addWeighted(ground, _GROUND_SHARE, hot, _HEAT, 0.0)
    return np.where(np.isnan(values)[..., None], ground, mixed).astype(np.uint8)


def color_bar(width: int, scale: tuple[float, float]) -> Image:
    """Return the key of `heat`: (ROW, width, 3) BGR uint8, the numbers at the ends of a bar."""
    low, high = scale
    strip = np.full((ROW, width, 3), _GROUND, np.uint8)
    left, right = _text_width(f"{low:.2f}") + 14, width - _text_width(f"{high:.2f}") - 14
    ramp = np.broadcast_to(np.linspace(low, high, right - left, dtype=np.float32), (ROW - 8, right - left))
    strip[4:-4, left:right] = heat(np.full((*ramp.shape, 3), int(128 * _DIM), np.uint8), ramp, scale)
    _write(strip, f"{low:.2f}", 6)
    _write(strip, f"{high:.2f}", right + 8)
    return strip


def key(entries: Sequence[tuple[str, Color]], width: int) -> Image:
    """Return colours with their names in as many rows as they take: (ROW n, width, 3) BGR uint8, n >= 1."""
    rows: list[Image] = []
    x = width
    for name, color in entries:
        wide = _text_width(name) + 44
        if x + wide > width:
            rows.append(np.full((ROW, width, 3), _GROUND, np.uint8))
            x = 6
        cv2.rectangle(rows[-1], (x, 6), (x + 16, ROW - 7), color[::-1], -1)
        cv2.rectangle(rows[-1], (x, 6), (x + 16, ROW - 7), (128, 128, 128), 1)
        _write(rows[-1], name, x + 24)
        x += wide
    return np.vstack(rows)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0])


def _write(strip: Image, text: str, x: int) -> None:
    cv2.putText(strip, text, (x, ROW - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)


def read_class_weights(path: Path) -> tuple[list[float], dict[str, list[float]]]:
    """Read the class weights that a run logged; other lines, and broken ones, are passed over.

    Args:
        path: A metrics.jsonl, or where there might be one.

    Returns:
        The steps, and class name to one weight a step, NaN where a line has none.
    """
    points: list[tuple[float, dict[str, float]]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
            step, weights = float(record["step"]), {str(n): float(v) for n, v in record["class_weight"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if math.isfinite(step):
            points.append((step, {n: v for n, v in weights.items() if math.isfinite(v)}))
    names = dict.fromkeys(name for _, weights in points for name in weights)
    return [step for step, _ in points], {n: [weights.get(n, math.nan) for _, weights in points] for n in names}


def draw_class_weights(metrics: Path, path: Path, labels: Labels) -> bool:
    """Write class weights over steps as a .png: a line a class in its colour, its name at the line's end.

    Args:
        metrics: A run's metrics.jsonl.
        path: The picture.
        labels: Names and colours; a class without one is grey.

    Returns:
        Whether there was anything to draw.
    """
    steps, lines = read_class_weights(metrics)
    if not lines:
        return False
    colors = {n: (r / 255, g / 255, b / 255) for n, (r, g, b) in zip(labels.names, labels.colors, strict=True)}
    figure = Figure(figsize=(10, max(5.5, 0.21 * len(lines) + 1.2)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    outline = [Stroke(linewidth=2.8, foreground="0.35"), Normal()]  # a light colour would be lost on white
    alone = len(steps) == 1
    for name, values in lines.items():
        color = colors.get(name, "0.5")
        axes.plot(steps, values, color=color, marker="o" if alone else None, lw=1.8, path_effects=outline)
    axes.axhline(1, color="0.3", linestyle=(0, (4, 4)), linewidth=1, zorder=0)
    axes.set_xlim(steps[0] - alone, steps[-1])
    axes.margins(y=0.04)
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, 0.9), max(top, 1.1))  # at the beginning all are nearly 1, and should look so
    _name_ends(axes, steps, lines, colors)
    axes.set_title("LFD's class weights in the course of training", loc="left", fontsize=13)
    axes.set_xlabel("step", fontsize=11)
    axes.set_ylabel("weight w", fontsize=11)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return True


def _name_ends(
    axes: Axes,
    steps: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    colors: Mapping[str, tuple[float, float, float]],
) -> None:
    """Write each line's name and last value beside its end, apart from the others, with a stroke between the two."""
    known = {name: [v for v in values if not math.isnan(v)] for name, values in lines.items()}
    ends = {name: values[-1] for name, values in known.items() if values}
    bottom, top = axes.get_ylim()
    heights = [(end - bottom) / (top - bottom) for end in ends.values()]
    for (name, end), height in zip(ends.items(), apart(heights, 0.95 / max(18, len(ends))), strict=True):
        stroke = {"arrowstyle": "-", "color": colors.get(name, "0.5"), "lw": 1.6, "shrinkA": 1, "shrinkB": 0}
        axes.annotate(
            f"{name}  {end:.2f}",
            (steps[-1], end),
            (1.05, height),
            textcoords="axes fraction",
            fontsize=10.5,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops=stroke | {"relpos": (0, 0.5)},
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights moved as little as it takes (least squares) to be `gap` apart, in their order and in [0, 1]."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[list[float]] = []  # pools of adjacent violators; without their gaps, heights must not fall
    for k, i in enumerate(order):
        blocks.append([heights[i] - k * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    top = max(0.0, 1 - (len(order) - 1) * gap)
    flat = [float(np.clip(np.mean(block), 0, top)) for block in blocks for _ in block]
    return [flat[order.index(i)] + order.index(i) * gap for i in range(len(heights))]
